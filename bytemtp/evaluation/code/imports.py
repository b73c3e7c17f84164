"""Which problems cannot be judged here, because their tests import what the sandbox does not have.

The import statements of the tests are tried in the sandbox, without any program, before a sample is judged.  Those that
tests may do without (inside `try` or `if`, or of names that are not used) do not count.

Try:  python -m bytemtp.evaluate execute --problems HumanEvalPlus.jsonl.gz --canonical --out checked
"""

import ast
import sysconfig
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from bytemtp.common.errors import UserError
from bytemtp.common.runtime import log
from bytemtp.evaluation.code.apart import parsed
from bytemtp.evaluation.code.problems import Cases, Problem, judgeable
from bytemtp.sandbox.launch import Launch
from bytemtp.sandbox.prepare import tried

MOST_NAMED = 10
"""Problems that the log names; the summary names all."""


def checked(launch: Launch, problems: Sequence[Problem]) -> list[Problem]:
    """The problems, with a `fault` for those whose tests cannot be imported; what cannot be judged is named in the log.

    UserError if none can be judged.
    """
    errors = missing(launch, sorted(set().union(*map(statements, problems))))
    problems = [settled(problem, errors) for problem in problems]
    faults = [f"{problem.task_id} ({problem.fault})" for problem in problems if problem.fault]
    packages = sysconfig.get_path("purelib")
    hint = f"; --site-packages DIR lets packages in, as {packages}" if errors and not launch.packages else ""
    if not judgeable(problems):
        raise UserError(f"none of the {len(problems)} problems can be judged: {faults[0]}{hint}")
    if faults:
        more = f" and {len(faults) - MOST_NAMED} more" if len(faults) > MOST_NAMED else ""
        log(f"left out, because they cannot be judged: {', '.join(faults[:MOST_NAMED])}{more}{hint}")
    return problems


def missing(launch: Launch, imports: Sequence[str]) -> dict[str, str]:
    """Those import statements that fail in the sandbox, and how."""
    outcomes = zip(imports, tried(launch, imports), strict=True)
    return {statement: outcome.result for statement, outcome in outcomes if not outcome.passed}


def settled(problem: Problem, errors: Mapping[str, str]) -> Problem:
    """With a fault if its tests need an import that fails; without such imports if they do not."""
    failing = statements(problem) & errors.keys()
    if problem.fault or isinstance(problem.tests, Cases) or not failing:
        return problem
    trees = prelude, program = parsed(problem.tests.prelude), parsed(problem.tests.program)
    used = {node.id for tree in trees for node in ast.walk(tree) if isinstance(node, ast.Name)} | {"*"}
    needed = {text for text in failing if used & set(names_of(text))}
    if problem.kind == "humaneval":  # the program begins with the prompt, too
        needed |= failing & set(_imports(prelude))
    if needed:
        text = min(needed)
        return replace(problem, fault=f"its tests need `{text}`, which {errors[text]}")
    texts = [ast.unparse(Without(failing).visit(tree)) for tree in (prelude, program)]
    return replace(problem, tests=replace(problem.tests, prelude=texts[0], program=texts[1]))


class Without(ast.NodeTransformer):
    """Takes out import statements."""

    def __init__(self, texts: set[str]) -> None:
        self._texts = texts

    def generic_visit(self, node: ast.AST) -> ast.AST:
        if isinstance(node, ast.Import | ast.ImportFrom) and ast.unparse(node) in self._texts:
            return ast.Pass()
        return super().generic_visit(node)


def names_of(statement: str) -> Iterator[str]:
    """What an import statement defines."""
    for node in ast.walk(parsed(statement)):
        if isinstance(node, ast.alias):
            yield node.asname or node.name.split(".")[0]


def statements(problem: Problem) -> set[str]:
    """The imports that tests come to."""
    if isinstance(problem.tests, Cases):
        return set()
    return {text for code in (problem.tests.prelude, problem.tests.program) for text in _imports(parsed(code))}


def _imports(tree: ast.AST) -> Iterator[str]:
    todo = [tree]  # a sum of a thousand terms is a thousand levels deep: too many for recursion
    while todo:
        match node := todo.pop():
            case ast.Import() | ast.ImportFrom():
                yield ast.unparse(node)
            case ast.Call(
                func=ast.Name("__import__") | ast.Attribute(attr="import_module"), args=[ast.Constant(str(name)), *_]
            ) if all(part.isidentifier() for part in name.split(".")):
                yield f"from {name} import *"
            case ast.Try(handlers=[_, *_]) | ast.If():
                pass
            case ast.List() | ast.Tuple() | ast.Dict() | ast.Set():
                pass  # data, of which tests may have a lot
            case _:
                todo.extend(ast.iter_child_nodes(node))

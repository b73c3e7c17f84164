"""Which tests can run apart from the program, calling its functions by messages of plain values; and by which names.

Those that cannot have `together` set: they share a class or a variable with the solution, look at what it prints, or
hand it a function, or have to do with what belongs to a process, as its environment or files.  Where no solution is
known, those, too, that do with a result what shows whether it is a plain value, and the very one.  Only what can be
read off the tests is found here; what shows when they run, and when the known solution is judged, `execute.py` finds.
"""

import ast
import builtins
import warnings
from dataclasses import dataclass

from bytemtp.evaluation.code.names import bound, calls, is_name, used
from bytemtp.evaluation.code.sharing import shares
from bytemtp.evaluation.code.uses import only_plain


class Unjudgeable(ValueError):
    """A problem whose tests are missing or broken."""


@dataclass(frozen=True)
class FunctionTests:
    """Python code that calls functions of the program."""

    prelude: str
    """code of the problem that the tests lean on: HumanEval's prompt, the imports of MBPP's solution"""
    program: str
    """the tests"""
    remote: tuple[str, ...]
    """names in the tests that are functions of the program"""
    together: bool
    """the tests only run in one process with the program"""


def function_tests(
    prelude: str, program: str, solution: str, remote: set[str], *, solved: bool = True
) -> FunctionTests:
    """Which names of the tests stand for functions of the program: `remote`, and those that nothing else defines.
    A function of the known solution hides the builtin of its name (MBPP/126 is called sum).

    Tests have to run together with the program if they use such a name other than by calling it, or the known solution
    defines it as something else than a function, or they have classes of their own or use one of the prelude, but for
    exceptions, or they share anything else (`sharing.py`), or hand a function or a generator to the program.

    solved: `solution` is one, so that it shows what cannot be read off here.
    """
    try:
        tree = parsed(program)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise Unjudgeable(f"the tests are no Python: {error}") from None
    before, answer = parsed(prelude), parsed(solution if parses(solution) else "")
    functions = {node.name for node in answer.body if isinstance(node, ast.FunctionDef)}
    known = bound(before) | bound(tree) | (set(dir(builtins)) - functions) | {"__name__"}
    remote = remote | (used(tree) - known)
    theirs = _theirs(tree, before, remote)
    together = (
        bool(remote & bound(answer, functions=False))
        or not _only_called(tree, remote)
        or _has_classes(tree)
        or shares(tree, before, answer, remote)
        or _hands_functions(tree, before, theirs)
        or not (solved or only_plain(tree, theirs))
    )
    return FunctionTests(prelude, program, tuple(sorted(remote)), together)


def _only_called(tree: ast.AST, remote: set[str]) -> bool:
    """Whether the tests use these names by calling them, or by handing them to a function of their own."""
    fine = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            fine |= {id(node.func), *map(id, node.args)}
    names = [node for node in ast.walk(tree) if isinstance(node, ast.Name) and node.id in remote]
    return all(id(node) in fine for node in names)


def _has_classes(tree: ast.AST) -> bool:
    """Whether tests define a class, which they could hand over; those of unittest aside."""
    classes = [node for node in ast.walk(tree) if isinstance(node, ast.ClassDef)]
    return not all(any("TestCase" in ast.unparse(base) for base in node.bases) for node in classes)


def _theirs(tree: ast.Module, prelude: ast.Module, remote: set[str]) -> set[str]:
    """Names that stand for functions of the program: `remote`, and parameters of functions of the tests."""
    own, theirs = _own(tree, prelude), set(remote)
    for name, call in calls(tree):  # check(f): in it, `candidate` is a function of the program
        if name in own:
            pairs = zip(own[name].args.args, call.args, strict=False)
            theirs |= {parameter.arg for parameter, value in pairs if is_name(value) and value.id in remote}
    return theirs


def _hands_functions(tree: ast.Module, prelude: ast.Module, theirs: set[str]) -> bool:
    """Whether tests call a function of the program with a lambda, a generator expression or a function's name."""
    functions = _own(tree, prelude).keys() | theirs
    theirs_called = [call for name, call in calls(tree) if name in theirs]
    given = [part for call in theirs_called for part in [*call.args, *(k.value for k in call.keywords)]]
    return any(
        isinstance(value, ast.Lambda | ast.GeneratorExp) or (is_name(value) and value.id in functions)
        for value in given
    )


def _own(tree: ast.AST, prelude: ast.AST) -> dict[str, ast.FunctionDef]:
    return {node.name: node for node in [*ast.walk(prelude), *ast.walk(tree)] if isinstance(node, ast.FunctionDef)}


def parsed(text: str) -> ast.Module:
    """Without warnings about odd code, which is not ours.  SyntaxError, ValueError or RecursionError if it is none."""
    with warnings.catch_warnings(action="ignore"):
        return ast.parse(text)


def parses(text: str) -> bool:
    try:
        parsed(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    return True

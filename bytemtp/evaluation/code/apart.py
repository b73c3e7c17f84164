"""Which tests can run apart from the program, calling its functions by messages of plain values; and by which names.

Those that cannot have `together` set: they share a class or a variable with the solution, look at what it prints, or
hand it a function.  Only what can be read off the tests is found here; what shows when the known solution is judged is
found by `execute.py`.
"""

import ast
import builtins
import warnings
from dataclasses import dataclass
from typing import TypeGuard

SHARED = {"redirect_stdout", "redirect_stderr", "patch", "stdout =", "stderr =", "stdin =", "input ="}
"""What tests use (assign to) that look at what a program prints, or give it something to read."""


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


def function_tests(prelude: str, program: str, solution: str, remote: set[str]) -> FunctionTests:
    """Which names of the tests stand for functions of the program: `remote`, and those that nothing else defines.
    A function of the known solution hides the builtin of its name (MBPP/126 is called sum).

    Tests have to run together with the program if they use such a name other than by calling it, or the known solution
    defines it as something else than a function, or they have classes of their own or use one of the prelude, but for
    exceptions, or replace what the program prints to, or hand a function or a generator to the program.
    """
    try:
        tree = parsed(program)
    except SyntaxError as error:
        raise ValueError(f"the tests are no Python: {error}") from None
    answer = parsed(solution if parses(solution) else "")
    functions = {node.name for node in answer.body if isinstance(node, ast.FunctionDef)}
    known = _bound(parsed(prelude)) | _bound(tree) | (set(dir(builtins)) - functions) | {"__name__"}
    remote = remote | (_used(tree) - known)
    others = _bound(answer, functions=False)
    shared = _classes(parsed(prelude)) & _used(tree) or SHARED & _mentioned(tree)
    together = bool(remote & others or shared) or not _only_called(tree, remote) or _has_classes(tree)
    together = together or _hands_functions(tree, parsed(prelude), remote)
    return FunctionTests(prelude, program, tuple(sorted(remote)), together)


def _classes(prelude: ast.Module) -> set[str]:
    """Names of classes that are not derived from what is called an exception."""
    classes: set[str] = set()
    errors: set[str] = set()
    for node in prelude.body:
        if isinstance(node, ast.ClassDef):
            bases = {ast.unparse(base) for base in node.bases}
            error = bool(bases & errors) or any(base.endswith(("Error", "Exception")) for base in bases)
            (errors if error else classes).add(node.name)
    return classes


def _mentioned(tree: ast.AST) -> set[str]:
    """Names that are used, also as attributes or imported; of attributes that are assigned, with a sign."""
    names = _used(tree)
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            names.add(node.attr + " =" * isinstance(node.ctx, ast.Store))
        elif isinstance(node, ast.ImportFrom):
            names |= {alias.name for alias in node.names}
    return names


def _bound(tree: ast.AST, *, functions: bool = True) -> set[str]:
    """Names that code defines anywhere; without those of functions and their parameters if not `functions`."""
    names: set[str] = set()
    for node in ast.walk(tree) if functions else ast.iter_child_nodes(tree):
        match node:
            case ast.FunctionDef() | ast.AsyncFunctionDef() if not functions:
                pass
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
                names.add(name)
            case ast.Import(names=aliases) | ast.ImportFrom(names=aliases):
                names |= {(alias.asname or alias.name).split(".")[0] for alias in aliases}
            case ast.arg(arg=name) | ast.ExceptHandler(name=str(name)) | ast.Name(id=name, ctx=ast.Store()):
                names.add(name)
            case ast.Assign() | ast.AnnAssign() if not functions:
                names |= _bound(node)
    return names


def _used(tree: ast.AST) -> set[str]:
    return {node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)}


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


def _hands_functions(tree: ast.Module, prelude: ast.Module, remote: set[str]) -> bool:
    """Whether tests call a function of the program with a lambda, a generator expression or a function's name."""
    own = {node.name: node for node in [*ast.walk(prelude), *ast.walk(tree)] if isinstance(node, ast.FunctionDef)}
    calls = [(node.func.id, node) for node in ast.walk(tree) if isinstance(node, ast.Call) and _is_name(node.func)]
    theirs = set(remote)
    for name, call in calls:  # check(f): in it, `candidate` is a function of the program
        if name in own:
            pairs = zip(own[name].args.args, call.args, strict=False)
            theirs |= {parameter.arg for parameter, value in pairs if _is_name(value) and value.id in remote}
    given = [part for name, call in calls if name in theirs for part in [*call.args, *(k.value for k in call.keywords)]]
    functions = own.keys() | theirs
    return any(
        isinstance(value, ast.Lambda | ast.GeneratorExp) or (_is_name(value) and value.id in functions)
        for value in given
    )


def _is_name(node: ast.AST) -> TypeGuard[ast.Name]:
    return isinstance(node, ast.Name)


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

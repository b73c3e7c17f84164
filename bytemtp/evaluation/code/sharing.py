"""What tests share with the program besides the values that they hand it: classes, variables, the process."""

import ast

from bytemtp.evaluation.code.names import bound, declared_global, imported, path_of, used, variables

SHARED = (
    # What a program prints, or is given to read.
    "redirect_stdout redirect_stderr patch input= print= "
    # Contexts, warnings and logs.
    "getcontext setcontext localcontext catch_warnings assertWarns assertWarnsRegex assertLogs assertNoLogs tzset "
    # Files, by methods of paths.
    "cwd home exists is_file is_dir mkdir rmdir touch unlink rename stat iterdir glob rglob resolve samefile "
    "open read_text read_bytes write_text write_bytes "
    # The program's names, and what a function has besides its own.
    "globals setattr delattr __import__ __doc__ __module__ __annotations__ __defaults__ __kwdefaults__ __code__ "
    "__closure__ __dict__ __wrapped__ get_type_hints "
    # What an exception has besides its arguments.
    "__traceback__ __context__ __class__"
)
"""What tests use, as names or attributes ("=": assign to), that works in one process with the program only."""

PURE = (
    "__future__ abc base64 binascii bisect calendar cmath collections concurrent copy dataclasses datetime decimal "
    "difflib enum fractions functools hashlib heapq itertools json math numbers operator pathlib pprint random re "
    "statistics string struct textwrap threading time timeit typing unicodedata unittest zlib contextlib numpy "
    "sys.float_info sys.getsizeof sys.int_info sys.maxsize sys.maxunicode sys.stderr sys.stdout sys.version "
    "sys.version_info os.linesep os.path.basename os.path.dirname os.path.join os.path.split os.path.splitext os.sep"
)
"""Modules that tests use, and names of others, without a state that the program could share."""


def shares(tree: ast.Module, prelude: ast.Module, answer: ast.Module, remote: set[str]) -> bool:
    """Whether tests, by themselves or by functions of the prelude, share a class or a variable with the program, or
    the state of the process or of a module."""
    whole = ast.Module([*tree.body, *_helpers(tree, prelude, remote)], [])
    own = variables(tree) | {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
    given = own & (used(answer) - bound(answer))
    taken = (_classes(prelude) | variables(prelude)) & (used(whole) | declared_global(whole))
    return bool(given or taken or _mentioned(whole).intersection(SHARED.split())) or _touches_modules(whole, prelude)


def _helpers(tree: ast.Module, prelude: ast.Module, remote: set[str]) -> list[ast.FunctionDef]:
    """Functions of the prelude that the tests use, and those that these use."""
    functions = {node.name: node for node in prelude.body if isinstance(node, ast.FunctionDef)}
    found: dict[str, ast.FunctionDef] = {}
    names = used(tree)
    while new := (names & functions.keys()) - found.keys() - remote:
        found |= {name: functions[name] for name in new}
        names = set().union(*(used(functions[name]) for name in new))
    return list(found.values())


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
    """Names that are used, also as attributes or imported, and variables, with a sign; but to open /dev/null."""
    idle = {id(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call) and _opens_nothing(node)}
    names = {name + "=" for name in variables(tree)}
    for node in ast.walk(tree):
        match node:
            case ast.Name(id=name, ctx=ast.Load()) | ast.Attribute(attr=name) if id(node) not in idle:
                names.add(name)
            case ast.ImportFrom(names=aliases):
                names |= {alias.name for alias in aliases}
    return names


def _opens_nothing(call: ast.Call) -> bool:
    match call:
        case ast.Call(func=ast.Name(id="open"), args=[ast.Constant(value="/dev/null"), *_]):
            return True
    return False


def _touches_modules(tree: ast.AST, prelude: ast.Module) -> bool:
    """Whether tests use what is not among PURE, or assign to an attribute of a module."""
    modules = imported(prelude) | imported(tree)
    inner = {node.value for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute | ast.Name) and node not in inner and (path := path_of(node, modules)):
            assigned = isinstance(node, ast.Attribute) and not isinstance(node.ctx, ast.Load)
            if assigned or not _is_pure(path):
                return True
    return False


def _is_pure(path: str) -> bool:
    parts = path.split(".")
    return any(".".join(parts[: i + 1]) in PURE.split() for i in range(len(parts)))

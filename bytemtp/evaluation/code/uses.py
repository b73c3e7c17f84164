"""Whether tests only do with what the program returns what goes as well with what arrives of it.

A generator does not arrive, a value arrives as the builtin that it is derived from, and as another object each time.
"""

import ast
import builtins
from pathlib import PosixPath

from bytemtp.evaluation.code.names import calls, is_name
from bytemtp.sandbox.wire import FORMS, PLAIN

MUTATORS = (
    "add append appendleft clear discard extend extendleft insert pop popitem popleft remove reverse rotate setdefault "
    "sort update"
)
LOOKED_AT = {"abs", "bool", "complex", "float", "int", "isclose", "isinstance", "len", "print", "round"}
"""Functions that do the same with what the program returned and with what arrives of it."""
PLAIN_ATTRIBUTES = {
    name for kind in {*FORMS, *PLAIN, int} - {PosixPath} for name in dir(kind) if not name.startswith("_")
}
"""Of plain values; those of paths, as `group` and `name`, may well be meant of other objects."""
Parents = dict[ast.AST, ast.AST]


def only_plain(tree: ast.Module, theirs: set[str]) -> bool:
    """Of tests and the names that stand for functions of the program; a name with a capital is that of a class."""
    parents = {child: node for node in ast.walk(tree) for child in ast.iter_child_nodes(node)}
    kept = _kept(tree, theirs)
    given = {value.id for name, call in calls(tree) if name in theirs for value in call.args if is_name(value)}
    return (
        all(_is_plain_use(node, parents, theirs) for node in ast.walk(tree) if _is_result(node, theirs, kept))
        and not any(_tells_apart(node) or _changes(node, kept | given) for node in ast.walk(tree))
        and not any(name[:1].isupper() for name in theirs)
    )


def _is_result(node: ast.AST, theirs: set[str], kept: set[str]) -> bool:
    if isinstance(node, ast.Call):
        return is_name(node.func) and node.func.id in theirs
    return is_name(node) and isinstance(node.ctx, ast.Load) and node.id in kept


def _kept(tree: ast.Module, theirs: set[str]) -> set[str]:
    """Variables that hold results, or parts of them."""
    kept: set[str] = set()
    while True:
        before = set(kept)
        for node in ast.walk(tree):
            if isinstance(node, ast.Assign | ast.AnnAssign | ast.NamedExpr) and node.value:
                values = node.value.elts if isinstance(node.value, ast.Tuple | ast.List) else [node.value]
                if any(_is_result(_whole(value), theirs, kept) for value in values):
                    targets = node.targets if isinstance(node, ast.Assign) else [node.target]
                    kept |= {
                        part.id
                        for target in targets
                        for part in ast.walk(target)
                        if is_name(part) and isinstance(part.ctx, ast.Store)
                    }
        if kept == before:
            return kept


def _whole(node: ast.AST) -> ast.AST:
    return _whole(node.value) if isinstance(node, ast.Subscript) else node


def _is_plain_use(node: ast.AST, parents: Parents, theirs: set[str]) -> bool:
    """What is done with a result, or with a part of it."""
    parent = parents[node]
    match parent:
        case ast.Subscript(value=value) if value is node:
            return _is_plain_use(parent, parents, theirs)
        case ast.Attribute(attr=name):
            return name in PLAIN_ATTRIBUTES
        case ast.Compare():
            return _is_plain_comparison(parent, node)
        case ast.Call(func=func):
            return func is not node and _looks_at(parent, theirs)
        case ast.keyword():
            return _looks_at(parents[parent], theirs)
        case ast.comprehension(iter=iterated):
            return iterated is not node
        case ast.For() | ast.AsyncFor() | ast.Starred() | ast.YieldFrom() | ast.Await() | ast.withitem():
            return False
    return True


def _is_plain_comparison(compare: ast.Compare, node: ast.AST) -> bool:
    """Not of identity, but with the few that there is one of; and not of what is contained, which takes iterators."""
    operands = [compare.left, *compare.comparators]
    for left, operator, right in zip(operands, compare.ops, compare.comparators, strict=False):
        other = right if left is node else left
        if node not in (left, right):
            continue
        if isinstance(operator, ast.In | ast.NotIn) and right is node:
            return False
        single = isinstance(other, ast.Constant) and other.value in (None, True, False)
        if isinstance(operator, ast.Is | ast.IsNot) and not single:
            return False
    return True


def _looks_at(call: ast.AST, theirs: set[str]) -> bool:
    """Whether a function does the same with what the program returned and with what arrived."""
    if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Name | ast.Attribute):
        return False
    name = call.func.id if isinstance(call.func, ast.Name) else call.func.attr
    if name == "isinstance":
        kinds = {part.id for part in ast.walk(call.args[-1]) if isinstance(part, ast.Name)}
        return kinds <= vars(builtins).keys()
    return name in LOOKED_AT | theirs or name.startswith("assert")


def _tells_apart(node: ast.AST) -> bool:
    """The type of a value, or a number that is the same only as an object."""
    match node:
        case ast.Call(func=ast.Name(id="type"), args=[_]) | ast.Attribute(attr="nan") | ast.Name(id="nan"):
            return True
        case ast.Constant(value="nan"):
            return True
    return False


def _changes(node: ast.AST, names: set[str]) -> bool:
    """Whether it changes what one of these names stands for, which the program may have kept."""
    match node:
        case ast.Call(func=ast.Attribute(value=ast.Name(id=name), attr=method)) if method in MUTATORS.split():
            return name in names
        case ast.Subscript(value=ast.Name(id=name), ctx=ast.Store() | ast.Del()):
            return name in names
    return False

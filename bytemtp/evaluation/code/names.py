"""Names in Python code: which it uses, defines, assigns to and imports, and what it calls."""

import ast
from typing import TypeGuard

COMPREHENSIONS = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)
SCOPES = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Lambda, *COMPREHENSIONS)
"""What has names of its own."""


def used(tree: ast.AST) -> set[str]:
    return {node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)}


def bound(tree: ast.AST, *, functions: bool = True) -> set[str]:
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
                names |= bound(node)
    return names


def variables(tree: ast.AST) -> set[str]:
    """Names that are assigned outside of functions and classes."""
    names: set[str] = set()
    todo = [tree]
    while todo:
        for node in ast.iter_child_nodes(todo.pop()):
            if not isinstance(node, SCOPES):
                todo.append(node)
            if is_name(node) and isinstance(node.ctx, ast.Store):
                names.add(node.id)
    return names


def declared_global(tree: ast.AST) -> set[str]:
    return {name for node in ast.walk(tree) if isinstance(node, ast.Global) for name in node.names}


def imported(tree: ast.AST) -> dict[str, str]:
    """Names of modules and of what is in them -> where they are from."""
    names: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {a.asname: a.name for a in node.names if a.asname}
            names |= {a.name.split(".")[0]: a.name.split(".")[0] for a in node.names if not a.asname}
        elif isinstance(node, ast.ImportFrom):
            names |= {a.asname or a.name: f"{node.module}.{a.name}" for a in node.names}
    return names


def path_of(node: ast.AST, modules: dict[str, str]) -> str | None:
    """As in "os.path.join", of an attribute or name."""
    if isinstance(node, ast.Attribute) and (base := path_of(node.value, modules)):
        return f"{base}.{node.attr}"
    return modules.get(node.id) if is_name(node) else None


def calls(tree: ast.AST) -> list[tuple[str, ast.Call]]:
    """Those of what has a name, with it."""
    return [(node.func.id, node) for node in ast.walk(tree) if isinstance(node, ast.Call) and is_name(node.func)]


def is_name(node: ast.AST) -> TypeGuard[ast.Name]:
    return isinstance(node, ast.Name)

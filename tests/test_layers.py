"""Imports go one way: base -> data -> model -> train | decode -> evaluate -> command line.

The table below is the map of the package.  A module may import only modules that stand before it; train and decode
never import each other.  A new module needs a place in it.
"""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "bytemtp"

LAYERS = {
    "base": ["errors", "vocab", "config", "runtime", "settings_cli", "jsonl"],
    "data": ["sources", "compression", "documents", "packing", "stream", "testing"],
    "model": ["attention", "layers", "model", "rundir", "checkpoint"],
    "train": ["loss", "optimizer", "tuning", "progress", "interrupts", "resuming", "trainer"],
    "decode": [
        *(
            "cache",
            "incremental",
            "recorded",
            "native",
            "exact",
            "sampling",
            "utf8",
            "row",
            "tree",
            "decode",
            "divergence",
        ),
        *("show", "page", "generate"),
    ],
    "evaluate": [
        *("bpb", "report", "problems", "sandbox", "execute", "passk_samples", "passk_score", "passk_report", "passk"),
        *("fastest", "tree_fit", "choice", "export", "bench"),
    ],
    "command line": ["train", "evaluate"],
}
"""In import order.  A folder is one entry; inside it, imports are free."""

ORDER = [module for modules in LAYERS.values() for module in modules]
APART = {frozenset(("train", "decode"))}
"""Layers that never import each other, in either direction."""


def layer_of(module: str) -> str:
    return next(layer for layer, modules in LAYERS.items() if module in modules)


def entry_of(path: Path) -> str:
    """`bytemtp/model.py` and `bytemtp/model/cache.py` are both `model`."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports_of(source: str) -> set[str]:
    """Entries of bytemtp that a file imports, also those inside functions.  `import bytemtp` itself is no entry."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are written in full, so that they can be searched for"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    inside = {name.split(".")[1] for name in names if name.startswith("bytemtp.")}
    return inside & set(ORDER)


def complaints(module: str, imported: set[str]) -> list[str]:
    """What is wrong with these imports of `module`."""
    found = [f"{module} imports {other}, which stands after it" for other in imported if goes_up(module, other)]
    pairs = {other: frozenset((layer_of(module), layer_of(other))) for other in imported}
    return found + [f"{module} imports {other}: the two layers stay apart" for other in pairs if pairs[other] in APART]


def goes_up(module: str, other: str) -> bool:
    return ORDER.index(other) > ORDER.index(module)


FILES = sorted(path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py")


def test_the_table_names_every_module():
    assert {entry_of(path) for path in FILES} == set(ORDER)
    assert len(ORDER) == len(set(ORDER))


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_go_one_way(path):
    module = entry_of(path)
    assert module in ORDER, f"give {module} a place in LAYERS"
    assert complaints(module, imports_of(path.read_text()) - {module}) == []


def test_the_public_names_need_no_command():
    """`import bytemtp` must not parse a command line."""
    imported = imports_of((PACKAGE / "__init__.py").read_text())
    assert "command line" not in map(layer_of, imported)


@pytest.mark.parametrize(
    ("module", "source", "wrong"),
    [
        ("model", "from bytemtp.config import ModelConfig", False),
        ("model", "from bytemtp.errors import UserError as Error", False),
        ("model", "import bytemtp", False),
        ("model", "from bytemtp.trainer import train", True),
        ("model", "from bytemtp import trainer", True),
        ("model", "import bytemtp.trainer as t", True),
        ("model", "def late():\n    from bytemtp.decode import generate", True),
        ("decode", "from bytemtp.trainer import train", True),
        ("trainer", "from bytemtp.decode import generate", True),
    ],
)
def test_a_wrong_import_is_found(module, source, wrong):
    assert bool(complaints(module, imports_of(source))) == wrong

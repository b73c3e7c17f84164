"""Folders are layers: the order below is the order of imports, and no modules import each other in a circle."""

import ast
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "bytemtp"
ORDER = ["common", "data", "model", "training", "decoding", "sandbox", "reports", "evaluation", "bench", "commands"]
"""A module imports from its own folder and from those before it.  Modules at the top of the package are commands."""
APART = {"training", "decoding"}
"""Neither imports the other."""
PUBLIC = ["bytemtp", "bytemtp.generate", "bytemtp.testing"]
"""What users import: names of other modules, and strategies that lean on none."""


def name_of(path: Path) -> str:
    return ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__")


MODULES = {name_of(path): path for path in sorted(PACKAGE.rglob("*.py"))}


def folder_of(module: str) -> str:
    """`bytemtp.model.layers` -> model; `bytemtp.train` -> commands."""
    top = module.split(".")[1]
    return top if top in ORDER else "commands"


def imports_of(source: str, known: dict[str, Path] = MODULES) -> set[str]:
    """Modules of bytemtp that a file imports, also those inside functions."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are written in full, so that they can be searched for"
            whole = {f"{node.module}.{alias.name}" for alias in node.names}
            names |= {name if name in known else str(node.module) for name in whole}
    return {name for name in names if name in known and name != "bytemtp"}


def is_wrong(module: str, imported: str) -> bool:
    here, there = folder_of(module), folder_of(imported)
    return ORDER.index(there) > ORDER.index(here) or {here, there} == APART


@pytest.mark.parametrize("module", [module for module in MODULES if module not in PUBLIC])
def test_imports_follow_the_order_of_folders(module):
    assert [other for other in imports_of(MODULES[module].read_text()) if is_wrong(module, other)] == []


def test_no_circles():
    """Inside folders neither.  `import bytemtp` itself is public, and for users."""
    TopologicalSorter({module: imports_of(path.read_text()) for module, path in MODULES.items()}).prepare()


def test_every_folder_says_what_is_in_it():
    for folder in PACKAGE.rglob("**/"):
        if folder.name != "__pycache__" and list(folder.glob("*.py")):
            assert len(ast.get_docstring(ast.parse((folder / "__init__.py").read_text())).splitlines()) > 0
    assert len([path for path in PACKAGE.iterdir() if path.name != "__pycache__"]) <= 21


@pytest.mark.parametrize(
    ("module", "source", "wrong"),
    [
        ("bytemtp.model.model", "from bytemtp.common.settings import ModelConfig", False),
        ("bytemtp.model.model", "from bytemtp.common.errors import UserError as Error", False),
        ("bytemtp.model.model", "import bytemtp", False),
        ("bytemtp.model.model", "from bytemtp.training.trainer import train", True),
        ("bytemtp.model.model", "from bytemtp.training import trainer", True),
        ("bytemtp.model.model", "import bytemtp.training.trainer as t", True),
        ("bytemtp.model.model", "def late():\n    from bytemtp.decoding.generate import generate", True),
        ("bytemtp.decoding.loop", "from bytemtp.training.trainer import train", True),
        ("bytemtp.training.trainer", "from bytemtp.decoding.generate import generate", True),
        ("bytemtp.bench.data", "from bytemtp.train import main", True),
    ],
)
def test_a_wrong_import_is_found(module, source, wrong):
    assert any(is_wrong(module, other) for other in imports_of(source)) == wrong

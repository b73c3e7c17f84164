"""The documentation is true: links lead somewhere, commands and options exist, the file tree is the package's."""

import re
from collections import Counter
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from bytemtp.bench.__main__ import VERBS as BENCH_VERBS
from bytemtp.common.cli import option_names
from bytemtp.common.settings import Settings, flatten
from bytemtp.compress.__main__ import Command as Compress
from bytemtp.decompress.__main__ import Command as Decompress
from bytemtp.evaluate import VERBS as EVALUATE_VERBS
from bytemtp.export import Command as Export
from bytemtp.generate.__main__ import Command as Generate
from bytemtp.index import Command as Index
from bytemtp.plan import Command as Plan
from bytemtp.report import Command as Report
from bytemtp.train import Command as Train

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted(ROOT.glob("docs/*.md")), ROOT / "corpora/README.md", ROOT / "tests/README.md"]
PAGES += sorted(ROOT.glob("experiments/**/README.md"))
DOCS = {str(path.relative_to(ROOT)): path.read_text(encoding="utf-8") for path in PAGES}
USERS_DOCS = {page: text for page, text in DOCS.items() if page.startswith(("README", "docs/"))}

KINDS: dict[str, type[Any]] = {
    "bytemtp.train": Train,
    "bytemtp.generate": Generate,
    "bytemtp.compress": Compress,
    "bytemtp.decompress": Decompress,
    "bytemtp.index": Index,
    "bytemtp.plan": Plan,
    "bytemtp.report": Report,
    "bytemtp.export": Export,
    **{f"bytemtp.evaluate {verb}": kind for verb, kind in EVALUATE_VERBS.items()},
    **{f"bytemtp.bench {verb}": kind for verb, kind in BENCH_VERBS.items()},
}
"""By command, the dataclass of its options."""


def test_file_tree_names_every_module():
    """docs/design.md: every folder of the package, and every module in it but `__init__.py`, is there once."""
    named = paths_in_tree(DOCS["docs/design.md"])
    wanted = package_paths()
    missing, surplus = sorted(wanted - set(named)), sorted(set(named) - wanted)
    twice = sorted(path for path, count in Counter(named).items() if count > 1)
    assert not (missing or surplus or twice), (
        f"the tree of docs/design.md lacks {missing}, has {surplus} which the package lacks, names twice {twice}"
    )


def package_paths() -> set[str]:
    """`common/`, `common/cli.py`, `decoding/engines/native/step.cpp`, ..."""
    package = ROOT / "bytemtp"
    paths = [path for path in package.rglob("*") if path.parent.name != "__pycache__"]
    modules = {path for path in paths if path.suffix in (".py", ".cpp") and path.name != "__init__.py"}
    folders = {path.parent for path in paths if path.is_file()} - {package}
    return {f"{path.relative_to(package)}{'/' * path.is_dir()}" for path in folders | modules}


def paths_in_tree(text: str) -> list[str]:
    """The tree is a code block that begins with `bytemtp/`; a level is two blanks, a folder ends with a slash."""
    (tree,) = re.findall(r"^```\nbytemtp/\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)
    paths: list[str] = []
    folders: list[str] = []
    for line in filter(None, tree.splitlines()):
        indent, name = re.match(r"( +)(\S+) ", line + " ").groups()  # type: ignore[union-attr]
        del folders[len(indent) // 2 - 1 :]
        paths.append("".join(folders) + name)
        if name.endswith("/"):
            folders.append(name)
    return paths


def test_the_tree_is_read_by_indentation():
    assert paths_in_tree("```\nbytemtp/\n  a/   x\n    b.py  y\n    c/\n      d.py\n  e.py\n```\n") == [
        *("a/", "a/b.py", "a/c/", "a/c/d.py", "e.py")
    ]


LINKS = [(page, link) for page, text in DOCS.items() for link in re.findall(r"\]\(([^)\s]+)\)", text)]


@pytest.mark.parametrize(("page", "link"), [(page, link) for page, link in LINKS if "://" not in link])
def test_links_lead_somewhere(page, link):
    file, _, anchor = link.partition("#")
    target = (ROOT / page).parent / file if file else ROOT / page
    assert target.exists(), f"{page} links to {link}"
    assert not anchor or anchor in anchors(target.read_text(encoding="utf-8")), f"{page} links to {link}"


def anchors(text: str) -> set[str]:
    """Of the headings, as GitHub makes them: lower case, blanks to hyphens, other punctuation dropped."""
    headings = re.findall(r"^#+ (.*)$", text, flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


NAMED = [(page, path) for page, text in DOCS.items() for path in re.findall(r"[\w/]+/\w+\.(?:py|cpp|sh|png)\b", text)]


@pytest.mark.parametrize(("page", "path"), sorted(set(NAMED)))
def test_source_files_named_in_the_docs_exist(page, path):
    assert any((folder / path).exists() for folder in (ROOT, ROOT / "bytemtp", (ROOT / page).parent)), (
        f"{page} names {path}"
    )


def test_commands_of_the_docs_exist_with_their_options():
    """No command is misspelt, and neither is an option."""
    found = [(page, command) for page, text in DOCS.items() for command in commands_in(text)]
    assert len(found) > 40
    wrong = [f"{page}: {command}: {said}" for page, command in found if (said := complaint(command))]
    assert not wrong, "\n".join(wrong)


NEEDED = {
    "bytemtp.train": ("--out",),
    "bytemtp.generate": ("--max-bytes",),
    "bytemtp.evaluate passk": ("--problems", "--out"),
    "bytemtp.export": ("--out",),
}


@pytest.mark.parametrize("name", NEEDED)
def test_commands_in_code_blocks_have_what_they_need(name):
    """So that they run as they stand, with names in place of capital letters."""
    lines = [(page, line.partition("  # ")[0]) for page, text in USERS_DOCS.items() for line in code_and_prose(text)[0]]
    found = [(page, line) for page, line in lines if f"-m {name} " in line and " ..." not in line]
    wrong = [entry for entry in found if not all(option in entry[1] for option in NEEDED[name])]
    assert found and not wrong


def test_modules_that_are_run_exist():
    """Corpora and experiments, in recipes and docstrings, too."""
    files = [path for kind in ("md", "toml", "py", "sh") for path in ROOT.glob(f"experiments/**/*.{kind}")]
    texts = {**DOCS, **{str(path.relative_to(ROOT)): path.read_text(encoding="utf-8") for path in files}}
    named = [
        (page, name) for page, text in texts.items() for name in re.findall(r"-m ((?:corpora|experiments)[\w.]*)", text)
    ]
    wrong = [entry for entry in named if not entry[1].endswith("NAME") and not find_spec(entry[1].rstrip("."))]
    assert len(named) > 60 and not wrong


def test_options_and_settings_named_in_passing_exist():
    """`--utf8` and `train.seq_len` in running text."""
    options = {"--help", *(name for kind in KINDS.values() for name in option_names(kind))}
    settings = flatten(Settings())
    for page, text in USERS_DOCS.items():
        for span in re.findall(r"`([^`\n]+)`", code_and_prose(text)[1]):
            word = span.split()[0]
            name = word.lstrip("-").replace("-", "_")
            if word.startswith("--"):
                assert "--" + name in options, f"{page}: {span}"
            if re.fullmatch(r"(model|train|data)\.[a-z_]+", name):
                assert name in settings, f"{page}: {span}"


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ("python -m bytemtp", ""),
        ("python -m bytemtp train X --out RUN --train.seq-len 4", ""),
        ("python -m bytemtp.train X --train.seqlen 4", "--train.seqlen"),
        ("python -m bytemtp.evaluate bqb RUN", "bytemtp.evaluate bqb"),
        ("python -m bytemtp.evaluate bpb RUN --heads 4", "--heads"),
        ("python -m bytemtp.generate RUN [--mode ar|speculative] [--compare ar]", ""),
        ("python -m bytemtp.nothing", "bytemtp.nothing"),
    ],
)
def test_a_misspelt_command_is_found(command, said):
    assert commands_in(f"Say `{command}` here.") == commands_in(f"    {command}  # why\n") == [command]
    assert said in complaint(command) and bool(said) == bool(complaint(command))


def commands_in(text: str) -> list[str]:
    """`python -m bytemtp...` in code blocks (continued lines joined, comments dropped) and in backticks."""
    code, prose = code_and_prose(text)
    spans = [" ".join(span.split()) for span in re.findall(r"`([^`]+)`", prose)]
    commands = [line.partition("  # ")[0].strip() for line in code] + spans
    return [command for command in commands if command.startswith("python -m bytemtp")]


def code_and_prose(text: str) -> tuple[list[str], str]:
    """The lines of fenced and indented code blocks, and the rest."""
    code, prose, fenced = [], [], False
    for line in text.replace("\\\n", " ").splitlines():
        if line.startswith("```"):
            fenced = not fenced
        elif fenced or line.startswith("    "):
            code.append(line)
        else:
            prose.append(line)
    return code, "\n".join(prose)


def complaint(command: str) -> str:
    """What of a command does not exist; empty if all of it does."""
    words = command.removeprefix("python -m ").split()
    if words[0] == "bytemtp":
        words = [f"bytemtp.{words[1]}", *words[2:]] if len(words) > 1 else ["bytemtp"]
    if words[0] in ("bytemtp", "bytemtp.bench.worker"):
        return ""
    name = next((name for name in (" ".join(words[:2]), words[0]) if name in KINDS), "")
    if not name:
        overview = words in (["bytemtp.evaluate"], ["bytemtp.bench"]) or words[1:2] == ["VERB"]
        return "" if overview else " ".join(words[:2])
    options = re.findall(r"(?<![\w-])--([a-z][\w.-]*)", command)
    known = {"--help", *option_names(KINDS[name])}
    return " ".join(f"--{option}" for option in options if "--" + option.replace("-", "_") not in known)

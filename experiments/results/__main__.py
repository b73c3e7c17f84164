"""Print the raw tables behind an entry of NOTES.md, as Markdown.

python -m experiments.results              every name with its title
python -m experiments.results heads_8      the tables of experiments/results/heads_8.json, which begin

# Eight heads against one at parity

Date: 2026-11-24
Commit: 750b684
"""

import argparse
import difflib
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bytemtp.common.cli import run_main

FOLDER = Path(__file__).parent


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m experiments.results", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("name", nargs="?", metavar="NAME", help="which tables; without it, the names are listed")
    name = parser.parse_args(arguments).name
    if name is None:
        print(listing())
    elif name in names():
        print(page(load(name)))
    else:
        print(unknown(name), file=sys.stderr)
        return 2
    return 0


def names() -> list[str]:
    return sorted(path.stem for path in FOLDER.glob("*.json"))


def load(name: str) -> dict[str, Any]:
    return json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))


def listing() -> str:
    """One line a file: its name and its title."""
    width = max(map(len, names()), default=0)
    return "\n".join(f"{name:{width}}  {load(name)['title']}" for name in names())


def unknown(name: str) -> str:
    """What to tell someone who asked for a name that does not exist, in one line."""
    nearest = difflib.get_close_matches(name, names(), n=1)
    hint = f"did you mean {nearest[0]}?" if nearest else "`python -m experiments.results` lists the names"
    return f"no results called {name!r}; {hint}"


def page(results: dict[str, Any]) -> str:
    """A file as Markdown: where it comes from, its tables with their captions, its notes."""
    blocks = [f"# {results['title']}"]
    blocks.append("\n".join(f"{key.capitalize()}: {results[key]}" for key in ("date", "commit", "machine")))
    blocks.append("\n".join(f"    {line}" for line in results["command"].splitlines()))
    for table in results["tables"]:
        blocks += [table["caption"], markdown_table(table["columns"], table["rows"])]
    if results.get("notes"):
        blocks.append("\n".join(f"- {note}" for note in results["notes"]))
    return "\n\n".join(blocks)


def markdown_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Rows under their column names, padded so that the source lines up, too.

    >>> print(markdown_table(["heads", "s/step"], [["1", "1.116"], ["8", "1.104"]]))
    | heads | s/step |
    | ----- | ------ |
    | 1     | 1.116  |
    | 8     | 1.104  |
    """
    widths = [max(map(len, column)) for column in zip(columns, *rows, strict=True)]
    lines = [columns, ["-" * width for width in widths], *rows]
    return "\n".join(f"| {' | '.join(map(str.ljust, line, widths))} |" for line in lines)


if __name__ == "__main__":
    run_main(lambda: sys.exit(main()))

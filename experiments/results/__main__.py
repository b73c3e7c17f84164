"""Print the raw tables behind an entry of NOTES.md, as Markdown.

python -m experiments.results              every name with its title
python -m experiments.results heads_8      the tables of experiments/results/heads_8.json, which begin

# Eight heads against one at parity

Date: 2026-11-24
Commit: 750b684
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bytemtp.bench.turns import markdown_table
from bytemtp.common.checks import check_known
from bytemtp.common.cli import run_main

FOLDER = Path(__file__).parent


def main(arguments: Sequence[str] | None = None) -> None:
    """UserError for a name that is not there."""
    parser = argparse.ArgumentParser(
        prog="python -m experiments.results", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("name", nargs="?", metavar="NAME", help="which tables; without it, the names are listed")
    name = parser.parse_args(arguments).name
    if name is not None:
        check_known(name, names(), f"results {name!r}")
    print(listing() if name is None else page(load(name)))


def names() -> list[str]:
    return sorted(path.stem for path in FOLDER.glob("*.json"))


def load(name: str) -> dict[str, Any]:
    return json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))


def listing() -> str:
    """One line a file: its name and its title."""
    width = max(map(len, names()), default=0)
    return "\n".join(f"{name:{width}}  {load(name)['title']}" for name in names())


def page(results: dict[str, Any]) -> str:
    """A file as Markdown: where it comes from, its tables with their captions, its notes."""
    blocks = [f"# {results['title']}"]
    blocks.append("\n".join(f"{key.capitalize()}: {results[key]}" for key in ("date", "commit", "machine")))
    blocks.append("\n".join(f"    {line}" for line in results["command"].splitlines()))
    for table in results["tables"]:
        blocks += [table["caption"], markdown_table(table["rows"], table["columns"])]
    if results.get("notes"):
        blocks.append("\n".join(f"- {note}" for note in results["notes"]))
    return "\n\n".join(blocks)


if __name__ == "__main__":
    run_main(main)

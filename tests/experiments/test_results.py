"""Raw tables of measurements, the command that prints them, and the lab notebook that refers to them."""

import re
from pathlib import Path

import pytest

from bytemtp.bench.turns import markdown_table
from bytemtp.common.errors import UserError
from experiments.results.__main__ import listing, load, main, names

NOTEBOOK = (Path(__file__).parents[2] / "NOTES.md").read_text(encoding="utf-8")
HEADER, *ENTRIES = re.split(r"^(?=## )", NOTEBOOK, flags=re.MULTILINE)
HEADINGS = [entry.splitlines()[0].removeprefix("## ") for entry in ENTRIES]


def anchor(heading: str) -> str:
    """The fragment under which GitHub finds a heading."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


@pytest.mark.parametrize("name", names())
def test_files_have_rectangular_tables_of_strings(name):
    results = load(name)
    assert {"title", "date", "command", "commit", "machine", "tables"} <= results.keys()
    assert results.keys() <= {"title", "date", "command", "commit", "machine", "tables", "notes"}
    assert re.fullmatch(r"\d{4}-\d\d-\d\d", results["date"]) and results["tables"]
    for table in results["tables"]:
        assert table.keys() == {"caption", "columns", "rows"}
        assert table["rows"] and len(set(table["columns"])) == len(table["columns"])
        for row in [table["columns"], *table["rows"]]:
            assert len(row) == len(table["columns"]) and all(isinstance(cell, str) for cell in row)


@pytest.mark.parametrize("name", names())
def test_command_prints_each_file(name, capsys):
    main([name])
    printed = capsys.readouterr().out
    for table in load(name)["tables"]:
        assert f"\n\n{table['caption']}\n\n{markdown_table(table['rows'], table['columns'])}\n" in printed


def test_columns_line_up():
    assert markdown_table([["1", "1.116"], ["32", ""]], ["heads", "s/step"]).splitlines() == [
        "| heads | s/step |",
        "| ---   | ---    |",
        "| 1     | 1.116  |",
        "| 32    |        |",
    ]


def test_command_lists_the_names(capsys):
    main([])
    assert capsys.readouterr().out == listing() + "\n"
    assert [line.split()[0] for line in listing().splitlines()] == names() != []


@pytest.mark.parametrize(("name", "hint"), [("head_8", "did you mean 'heads_8'?"), ("zzz", "choose from ")])
def test_unknown_name_is_an_error_with_a_hint(name, hint):
    with pytest.raises(UserError, match=f"unknown results '{name}'; {re.escape(hint)}"):
        main([name])


def test_entries_are_short():
    too_long = [heading for heading, entry in zip(HEADINGS, ENTRIES, strict=True) if entry.rstrip().count("\n") >= 40]
    assert ENTRIES and too_long == []


def test_index_names_every_entry_in_order():
    index = re.findall(r"^\| (\d{4}-\d\d-\d\d) \| \[[^\]]+\]\(#([^)]+)\) \| \S.* \|$", HEADER, flags=re.MULTILINE)
    assert index == [(heading[:10], anchor(heading)) for heading in HEADINGS]
    assert len(set(index)) == len(index), "GitHub numbers the anchors of equal headings"


def test_entries_are_newest_first():
    dates = [heading[:10] for heading in HEADINGS]
    assert dates == sorted(dates, reverse=True)


def test_notebook_and_files_name_each_other():
    assert set(re.findall(r"experiments\.results\s+([a-z0-9_]+)`", NOTEBOOK)) == set(names())

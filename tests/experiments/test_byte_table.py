"""The byte table: cells, and pass@k in the paper's layout."""

import json
from pathlib import Path

import pytest

from experiments.byte_table import __main__ as byte_table
from experiments.grid import cells_of
from tests.experiments.small_cells import small
from tests.experiments.test_deepseek_module import PROBLEM, texts


@pytest.mark.parametrize("name", ["cpu", "paper"])
def test_heads_are_the_paper_s(name: str) -> None:
    cells = cells_of(byte_table.EXPERIMENT, name, [0])
    assert {cell.settings["model.n_future"] for cell in cells} == {1, 8, 16, 32}
    for cell in cells:
        assert cell.name.partition(",")[0] == f"n={cell.settings['model.n_future']}"
        assert cell.name.endswith("equal") == (cell.settings.get("train.head_weights") == "equal")


def test_a_cell_is_trained_and_scored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("train.txt").write_bytes(b"def f(x):\n    return x\n" * 300)
    Path("problems.jsonl").write_text(json.dumps(PROBLEM) + "\n")
    (cell,) = cells_of(byte_table.EXPERIMENT, "cpu", [0], ["n=8, equal"])
    cell = small(cell, train="train.txt", problems={"toy set": "problems.jsonl"}, samples=2, tries=[1, 2], max_bytes=4)
    scored = byte_table.score(cell)
    assert byte_table.figures([scored]) == ["toy set pass@1", "toy set pass@2"]
    assert scored["toy set pass@1"] == 0 and json.loads(json.dumps(scored)) == scored


def line(cell: str, seed: int, *shares: float) -> dict:
    about = {"key": {"cell": cell, "seed": seed}, "minutes": 9.0}
    return about | {f"toy pass@{k}": share for k, share in zip((1, 10), shares, strict=True)}


def test_the_tables() -> None:
    lines = [line("n=1", 0, 0.5, 0.75), line("n=1", 1, 0.6, 0.85)]
    lines += [line("n=8, equal", 0, 0.2, 0.5), line("n=8, equal", 1, 0.4, 0.6)]
    first, second = byte_table.table(lines).split("\n\n")
    assert texts(first, 0) == ["heads", "seeds", "toy pass@1, %", "toy pass@10, %", "minutes"]
    assert texts(first, 3) == ["n=8, equal", "2", "30.0 ± 14.1", "55.0 ± 7.1", "9.0 ± 0.0"]
    assert texts(second, 2)[:4] == ["n=8, equal minus n=1", "toy pass@1", "2", "-25.0 ± 7.1"]
    assert len(byte_table.draw(lines).axes) == 2


def test_without_one_head_there_is_no_difference() -> None:
    assert "difference" not in byte_table.table([line("n=8, equal", 0, 0.2, 0.5)])

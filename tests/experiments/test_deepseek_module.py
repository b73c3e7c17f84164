"""One module for the byte after next: cells, scores, and tables by what was scored."""

import json
from pathlib import Path

import pytest

from bytemtp.common.settings import head_weights, scheduled_weights
from experiments import library, programs
from experiments.deepseek import __main__ as deepseek
from experiments.grid import cells_of
from experiments.n_sweep import __main__ as sweep
from tests.experiments.small_cells import small

PAPER_S = "module, 0.3 then 0.1"
PROBLEM = {
    "task_id": "toy/0",
    "prompt": "def f(x):\n",
    "entry_point": "f",
    "canonical_solution": "    return x\n",
    "test": "def check(candidate):\n    assert candidate(1) == 1\n",
}


def test_the_weight_is_the_paper_s() -> None:
    """0.3 for the first 10T of 14.8T tokens, then 0.1; on top of a model that is the same in all cells."""
    for preset in deepseek.EXPERIMENT.presets():
        (cell,) = cells_of(deepseek.EXPERIMENT, preset, [0], [PAPER_S])
        weights = head_weights(cell.settings["train.head_weights"], 2)
        now = [
            scheduled_weights(weights, cell.settings["train.head_schedule"], done)[1] for done in (0.0, 0.67, 0.68, 1.0)
        ]
        assert now == pytest.approx([0.3, 0.3, 0.1, 0.1])
        assert cell.settings["model.parity"] is False and cell.settings["train.far_rows"] == 1


def test_runs_that_the_sweep_has_are_not_made_again() -> None:
    ours, theirs = (
        {cell.name: cell.folder for cell in cells_of(experiment, "cpu", [0])}
        for experiment in (deepseek.EXPERIMENT, sweep.EXPERIMENT)
    )
    assert ours["n=1"] == theirs["n=1"] and ours["unembedding, 0.02"] == theirs["n=2"]


def test_a_cell_is_scored_in_bits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(library, "WRITTEN", 8)
    for name in ("train", "heldout"):
        Path(f"{name}.txt").write_bytes(name.encode() * 300)
    (cell,) = cells_of(deepseek.EXPERIMENT, "cpu", [0], [PAPER_S])
    scored = deepseek.score(small(cell, train="train.txt", heldout="heldout.txt"))
    assert len(scored["bpb_per_head"]) == len(scored["drafting"]) == 2 and list(deepseek.qualities([scored])) == ["bpb"]
    assert json.loads(json.dumps(scored)) == scored


@pytest.mark.parametrize("name", ["n=1", PAPER_S])
def test_a_cell_is_scored_in_programs(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(library, "WRITTEN", 8)
    Path("train.txt").write_bytes(b"def f(x):\n    return x\n" * 300)
    Path("problems.jsonl").write_text(json.dumps(PROBLEM) + "\n")
    (cell,) = cells_of(deepseek.EXPERIMENT, "tinycode", [0], [name])
    cell = small(cell, train="train.txt", problems={"toy set": "problems.jsonl"}, samples=2, tries=[1, 2], max_bytes=4)
    scored = deepseek.score(cell)
    assert scored["toy set pass@1"] == scored["toy set pass@2"] == 0 and "bpb" not in scored
    assert len(scored["drafting"]) == (0 if name == "n=1" else 2)
    assert programs.passk(cell) == dict.fromkeys(deepseek.qualities([scored]), 0), "it goes on from the folder"


def line(cell: str, seed: int, **figures: float) -> dict:
    drafting = [{"second_byte": 0.5 + seed / 10, "speed_up": 1.25}, {"second_byte": 0.4, "speed_up": 1.0}]
    about = {"key": {"cell": cell, "seed": seed}, "minutes": 2.0, "drafting": [] if cell == "n=1" else drafting}
    return about | figures


def texts(table: str, row: int) -> list[str]:
    return [text.strip() for text in table.splitlines()[row].split("|")[1:-1]]


def test_the_table_of_bits() -> None:
    lines = [line(cell, seed, bpb=bpb + seed / 10) for cell, bpb in (("n=1", 1.5), ("module", 1.25)) for seed in (0, 1)]
    table = deepseek.table(lines)
    assert texts(table, 2) == ["n=1", "2", "1.5500 ± 0.0707", *[""] * 6, "2.0 ± 0.0"]
    assert texts(table, 3)[2:4] == ["1.3000 ± 0.0707", "-0.2500 ± 0.0000"]
    assert texts(table, 3)[5:9] == ["55.0 ± 7.1", "40.0 ± 0.0", "1.25 ± 0.00", "1.00 ± 0.00"]
    assert len(deepseek.draw(lines).axes) == 2


def test_the_table_of_programs() -> None:
    lines = [line("n=1", 0, **{"toy pass@1": 0.5, "toy pass@10": 0.75})]
    lines += [line("module", 0, **{"toy pass@1": 0.25, "toy pass@10": 1.0})]
    table = deepseek.table(lines)
    assert texts(table, 0)[2:8] == ["toy pass@1, %", "minus n=1", "p", "toy pass@10, %", "minus n=1", "p"]
    assert texts(table, 3)[2:8] == ["25.0", "-25.0", "", "100.0", "+25.0", ""]
    assert len(deepseek.draw(lines).axes) == 3

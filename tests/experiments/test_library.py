"""Experiments on the Python library: runs that are shared, runs that start from others, and scores of decoding."""

import fcntl
import json
from dataclasses import replace
from pathlib import Path

import pytest

import bytemtp
from bytemtp.bench import quality
from experiments import grid, library, readme
from experiments.grid import Cell, cells_of
from experiments.n_sweep import __main__ as sweep
from tests.experiments.small_cells import small

SHARED = ("n_sweep", "future_lens", "compression")


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(library, "WRITTEN", 8)
    for name in ("train", "heldout"):
        Path(f"{name}.txt").write_bytes(name.encode() * 300)
    return {"train": "train.txt", "heldout": "heldout.txt"}


@pytest.mark.parametrize("name", ["n=1", "n=4"])
def test_a_cell_is_trained_and_scored(name: str, files: dict[str, str]) -> None:
    (cell,) = cells_of(sweep.EXPERIMENT, "cpu", [0], [name])
    scored = library.score(small(cell, **files))
    n = cell.settings["model.n_future"]
    assert scored["steps"] == 2 and len(scored["bpb_per_head"]) == n and scored["bpb"] == scored["bpb_per_head"][0]
    assert len(scored["drafting"]) == (2 if n > 1 else 0)
    assert all(1 <= one["bytes_per_pass"] <= n and one["speed_up"] > 0 for one in scored["drafting"])
    assert all(0 <= one["second_byte"] <= 1 for one in scored["drafting"])
    assert json.loads(json.dumps(scored)) == scored


def test_heads_can_be_added_to_another_cell_s_run(files: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Head 1 is then that run's, and the minutes and bytes are those of both."""
    monkeypatch.setattr(library, "cells_of", lambda *which: [small(cell, **files) for cell in cells_of(*which)])
    first, added = library.cells_of(sweep.EXPERIMENT, "cpu", [0], ["n=1", "n=8, added to n=1"])
    alone, both = sweep.score(first), sweep.score(added)
    for name in ("commit", "hardware", "threads"):  # were added up, too
        assert both[name] == alone[name]
    assert both["bpb"] == alone["bpb"] and both["steps"] == 2 * alone["steps"] and len(both["bpb_per_head"]) == 8


def test_cells_that_train_alike_are_one_run() -> None:
    """The models that other experiments look at are those of the sweep."""
    folders = [{cell.name: cell.folder for cell in cells_of(readme.load(name), "cpu", [0])} for name in SHARED]
    assert len({of["n=1"] for of in folders}) == len({of["n=8"] for of in folders}) == 1
    assert len(set(folders[0].values())) == len(folders[0])


def test_two_cells_do_not_train_one_run_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second waits, even in another process, and then finds it finished."""
    monkeypatch.chdir(tmp_path)
    cell = Cell("toy", "cpu", "a", 0, {"model.dim": 8}, {"runs": "shared"})
    other = replace(cell, experiment="another", name="b")
    assert cell.folder == other.folder
    running = []

    def is_locked() -> bool:
        with cell.folder.with_suffix(".lock").open() as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return True
        return False

    def run_module(*words: str) -> None:
        running.append(is_locked())

    monkeypatch.setattr(grid, "run_module", run_module)
    monkeypatch.setattr(grid, "end_of", lambda place: {"step": 1, "bytes_seen": 1, "elapsed_s": 1.0})
    grid.train(cell, "a.txt")
    grid.train(other, "a.txt")
    assert running == [True, True] and not is_locked()


def test_cells_differ_in_what_is_asked_about_alone() -> None:
    asked = {"model.n_future", "train.head_weights", "train.head_schedule", "train.far_rows", "train.freeze"}
    asked |= {"sweep.init", "model.topology", "model.layers"}
    for preset in sweep.EXPERIMENT.presets():
        cells = cells_of(sweep.EXPERIMENT, preset, [0])
        rest = [{k: v for k, v in cell.settings.items() if k not in asked} for cell in cells]
        assert rest.count(rest[0]) == len(rest) > 1


@pytest.mark.parametrize(
    ("changes", "curves"),
    [
        ({"model.n_future": 1}, 2),
        ({}, 1),
        ({"train.far_rows": 1.0}, 0),
        ({"train.head_weights": "equal", "train.far_rows": 1.0}, 1),
        ({"model.topology": "branched"}, 0),
        ({"train.head_weights": "equal", "train.head_schedule": "anneal"}, 0),
        ({"train.head_weights": "far:0"}, 0),
        ({"train.freeze": "trunk"}, 0),
    ],
)
def test_curves_have_constant_weights(changes: dict, curves: int) -> None:
    assert len(sweep.kinds({"key": {"grid": "cpu", "settings": {"model.n_future": 8} | changes}})) == curves


def line(cell: str, seed: int, bpb: float, heads: int = 8) -> dict:
    drafting = [{"bytes_per_pass": 2.0, "speed_up": 1.5}, {"bytes_per_pass": 1.5, "speed_up": 1.0}]
    return {
        "key": {"grid": "cpu", "cell": cell, "seed": seed, "settings": {"model.n_future": heads}},
        "bpb": bpb,
        "bpb_per_head": [bpb + i for i in range(heads)],
        "drafting": drafting if heads > 1 else [],
        "minutes": 2.0,
    }


def test_the_table_compares_with_one_head() -> None:
    lines = [line("n=1", seed, 1.5, heads=1) for seed in range(3)]
    lines += [line("n=8", seed, 1.6 + seed / 10) for seed in range(3)]
    _, _, one, eight = library.table(lines).splitlines()
    cells = [cell.strip() for cell in eight.split("|")[1:-1]]
    assert cells[:5] == ["n=8", "3", "1.7000 ± 0.1000", "+0.2000 ± 0.1000", "0.074"]
    assert cells[-5:] == ["2.00 ± 0.00", "1.50 ± 0.00", "1.50 ± 0.00", "1.00 ± 0.00", "2.0 ± 0.0"]
    assert one.count("±") == 2, "one head is compared with nothing and drafts nothing"
    assert len(sweep.draw(lines).axes) == 2


def test_the_second_byte_is_accepted_as_often_as_two_heads_say() -> None:
    """Text by text as `accept_rate_by_position` has it, and one byte more a pass that accepted it."""
    model = bytemtp.ByteMTP(replace(bytemtp.PRESETS["nano"].model, dim=16, attention_heads=1, layers=1, n_future=2))
    for temperature in (0.0, 1.5):
        written = library.write(model, [b"ab"], "speculative", temperature)
        options = {"mode": "speculative", "temperature": temperature, "heads": 2}
        stats = bytemtp.generate(model, b"ab", library.WRITTEN, **options).stats
        assert written.accepted == stats["accept_rate_by_position"][0] and written.passes == stats["forwards"]
    assert library.write(model, [b"ab"], "ar", 0.0).accepted == 0


def test_a_table_has_the_columns_that_are_added_and_none_that_are_empty() -> None:
    added = {"of": lambda lines: str(len(lines)), "void": lambda lines: ""}
    header, _, one = library.table([line("n=1", seed, 1.5, heads=1) for seed in range(3)], added).splitlines()
    assert [title.strip() for title in header.split("|")[1:-1]] == ["cell", "seeds", "of", "bpb, head 1", "minutes"]
    assert [text.strip() for text in one.split("|")[1:4]] == ["n=1", "3", "3"]


def test_figures_come_from_the_public_command(files: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    (cell,) = cells_of(sweep.EXPERIMENT, "cpu", [0], ["n=1"])
    cell = small(cell, **files)
    scored = library.score(cell)
    again = quality.bits_per_byte(cell.folder, [cell.options["heldout"]])
    assert again["bpb"] == scored["bpb"]


@pytest.mark.parametrize("preset", ["cpu", "paper"])
def test_curves_have_the_default_and_equal_weights(preset: str) -> None:
    """Of all numbers of heads, with the share of the rows that the preset has."""
    kinds = {cell.name: sweep.kinds({"key": cell.key}) for cell in cells_of(sweep.EXPERIMENT, preset, [0])}
    for name, curves in kinds.items():
        n, _, rest = name.partition(", ")
        expected = {"": [sweep.HARMLESS], "equal": [sweep.EQUAL]}.get(rest, [])
        assert curves == ([sweep.HARMLESS, sweep.EQUAL] if n == "n=1" else expected), name

"""The runner of all experiments: what is finished is not run again, and pages say what results.jsonl says."""

import ast
import json
import math
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bytemtp.bench import quality
from bytemtp.common.errors import UserError
from bytemtp.common.jsonl import read_lines
from experiments import grid, readme, tables
from experiments.grid import Cell, Experiment

ROOT = Path(__file__).parents[2]
RECIPE = """
[cpu]
corpus = "somewhere"
[cpu.common]
"model.dim" = 8
"task.size" = 1
[cpu.cells]
"one" = {}
"two, wide" = { "model.dim" = 16 }
[paper.common]
[paper.cells]
"large" = {}
"""


@pytest.fixture
def experiment(tmp_path, monkeypatch):
    """Two cells, in a folder of its own, that score their width and their seed."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(grid, "FOLDER", tmp_path)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setattr(grid.torch, "set_num_threads", lambda threads: None)  # of all later tests
    (tmp_path / "toy").mkdir()
    (tmp_path / "toy/recipe.toml").write_text(RECIPE)
    return Experiment("toy", lambda cell: {"size": cell.settings["model.dim"] + cell.seed}, str, tables.dots)


def keys_of(lines):
    return [(line["key"]["cell"], line["key"]["seed"], line["size"]) for line in lines]


def test_each_cell_is_run_once(experiment, capsys):
    grid.main(experiment, ["--seeds", "0", "1", "--jobs", "1", "--only", "one"])
    assert keys_of(read_lines(experiment.results)) == [("one", 0, 8), ("one", 1, 9)]
    grid.main(experiment, ["--seeds", "1", "1", "--jobs", "2"])
    assert keys_of(read_lines(experiment.results)) == [("one", 0, 8), ("one", 1, 9), ("two, wide", 1, 17)]
    assert "1 cells to run" in capsys.readouterr().err
    assert read_lines(experiment.results)[0]["scored"] == grid.commit()


def test_a_line_that_a_kill_cut_off_is_run_again(experiment):
    grid.main(experiment, ["--seeds", "0", "--jobs", "1"])
    whole = experiment.results.read_bytes()
    experiment.results.write_bytes(whole[:-5])
    grid.main(experiment, ["--seeds", "0", "--jobs", "1"])
    assert experiment.results.read_bytes() == whole


def test_a_cell_that_another_process_has_finished_meanwhile_is_not_written_twice(experiment):
    """Both begin with the same list of what is missing."""

    def score(cell: Cell) -> dict[str, int]:
        if not read_lines(experiment.results):
            grid.main(replace(experiment, score=lambda cell: {"size": 1}), ["--seeds", "0", "--only", "one"])
        return {"size": 2}

    grid.main(replace(experiment, score=score), ["--seeds", "0", "--jobs", "1", "--only", "one"])
    assert keys_of(read_lines(experiment.results)) == [("one", 0, 1)]


def test_only_regular_checkpoints_are_scored(tmp_path, monkeypatch):
    """Ctrl-C saves one in between, and the table of accuracies along training had a step that no other seed has."""
    monkeypatch.chdir(tmp_path)
    cell = Cell("toy", "cpu", "one", 0, {"train.checkpoint_every": 300}, {})
    for step in (300, 451, 600):
        (cell.folder / f"checkpoints/step-{step:08d}").mkdir(parents=True)
    monkeypatch.setattr(grid.bytemtp, "load", lambda folder, device: folder.name)
    monkeypatch.setattr(grid, "train", lambda cell, path, **settings: {"steps": 600})
    found = grid.train_along(cell, Path("a"), lambda model: {"model": model})
    way = [{"step": step, "model": f"step-{step:08d}"} for step in (300, 600)]
    assert found == {"steps": 600, "way": way} | way[-1]


def test_without_git_there_is_no_commit(monkeypatch):
    monkeypatch.setenv("PATH", "")
    assert grid.commit() == ""


def test_a_cell_with_other_settings_is_another_one(experiment):
    grid.main(experiment, ["--seeds", "0", "--jobs", "1"])
    before = grid.cells_of(experiment, "cpu", [0])
    recipe = experiment.folder / "recipe.toml"
    recipe.write_text(RECIPE.replace("16", "24"))
    assert keys_of(experiment.lines("cpu")) == [("one", 0, 8)]
    after = grid.cells_of(experiment, "cpu", [0])
    assert [old.folder == new.folder for old, new in zip(before, after, strict=True)] == [True, False]
    grid.main(experiment, ["--seeds", "0", "--jobs", "1"])
    assert keys_of(experiment.lines("cpu")) == [("one", 0, 8), ("two, wide", 0, 24)]
    recipe.write_text(RECIPE.replace("somewhere", "elsewhere"))
    assert experiment.lines("cpu") == [], "scored with another option"


def test_a_cell_that_fails_leaves_all_others(experiment):
    def score(cell):
        if cell.name != "one":
            raise UserError(f"no luck with {cell.seed}")
        return {"size": 0}

    failing = Experiment("toy", score, str, tables.dots)
    with pytest.raises(UserError, match="no luck with 0"):
        grid.main(failing, ["--seeds", "0", "1", "--jobs", "1"])
    assert keys_of(read_lines(failing.results)) == [("one", 0, 0), ("one", 1, 0)]


def test_an_unknown_cell_is_told(experiment):
    with pytest.raises(UserError, match="unknown cell 'three'; choose from 'one', 'two, wide'"):
        grid.main(experiment, ["--only", "three"])


def test_no_jobs_are_told(experiment):
    with pytest.raises(UserError, match="--jobs is 0; it must be 1 or more"):
        grid.main(experiment, ["--jobs", "0"])


def test_a_training_begins_anew_or_goes_on(tmp_path, monkeypatch):
    """The command line of a cell: bytemtp's settings alone, and --resume where a run has begun."""
    monkeypatch.chdir(tmp_path)
    words = []
    monkeypatch.setattr(grid, "run_module", lambda place, *rest: words.append(rest))
    cell = Cell("toy", "cpu", "G(2,5), x=0.1", 3, {"model.dim": 8, "task.size": 1, "train.seed": 9}, {})
    state = cell.folder / "checkpoints/step-00000002/state.json"
    monkeypatch.setattr(quality, "latest", lambda run: state.parent)
    state.parent.mkdir(parents=True)
    state.write_text(json.dumps({"step": 2, "bytes_seen": 64, "elapsed_s": 90.0}))
    before = [f"--{name}={value}" for name, value in grid.BEFORE.items()]
    settings = ["--model.dim=8", "--train.seed=3", "--train.seq_len=32", *before]
    where = {"hardware": grid.machine()["device"], "threads": torch.get_num_threads()}
    for again in ([], ["--resume"]):
        monkeypatch.setattr(grid, "commit", lambda again=again: "later" if again else "first")
        trained = grid.train(cell, Path("a.txt"), **{"train.seq_len": 32})
        assert trained == {"steps": 2, "bytes_seen": 64, "minutes": 1.5, "commit": "first"} | where
        assert sorted(words.pop()) == sorted(["bytemtp.train", "a.txt", "--out", str(cell.folder), *again, *settings])
        (cell.folder / "config.toml").touch()
    assert "." not in cell.folder.name, "its log has the same name with another ending"


def test_a_training_that_left_no_run_is_not_named_as_the_one_that_trained(tmp_path, monkeypatch):
    """It failed at once, or its folder was deleted; the next one may be of another commit."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(grid, "run_module", lambda place, *rest: "")
    monkeypatch.setattr(grid, "end_of", lambda place: {"step": 2, "bytes_seen": 64, "elapsed_s": 90.0})
    cell = Cell("toy", "cpu", "one", 0, {}, {})
    for now in ("first", "second"):
        monkeypatch.setattr(grid, "commit", lambda now=now: now)
        assert grid.train(cell, Path("a.txt"))["commit"] == now


@given(st.lists(st.tuples(*[st.integers(-50, 50)] * 2), min_size=2, max_size=3))
def test_p_values_are_student_s(pairs):
    """With one and two degrees of freedom its distribution has a closed form."""
    x, y = zip(*pairs, strict=True)
    differences = [a - b for a, b in pairs]
    mean = sum(differences) / len(pairs)
    square = sum((d - mean) ** 2 for d in differences) / (len(pairs) - 1)
    if len(set(differences)) == 1:
        assert tables.p_value(x, y) == ""
        return
    t = abs(mean) / math.sqrt(square / len(pairs))
    p = 1 - 2 / math.pi * math.atan(t) if len(pairs) == 2 else 1 - t / math.sqrt(2 + t * t)
    assert float(tables.p_value(x, y)) == pytest.approx(p, rel=0.06, abs=1e-9)


def test_a_paired_difference_takes_the_seeds_that_both_have():
    def lines(**of_seed):
        return [{"key": {"seed": seed}, "x": value} for seed, value in of_seed.items()]

    a, b = lines(s0=0.5, s1=0.7, s2=0.9), lines(s1=0.1, s2=0.5, s3=0.0)
    assert tables.paired(a, b, "x", ".1f", 100) == ["2", "+50.0 ± 14.1", "0.13"]
    assert tables.paired(a, lines(s4=0.1), "x", ".1f") == ["0", "", ""]
    assert tables.p_value([0.3, 0.4, 0.5], [0.1, 0.2, 0.3]) == "", "all differences are the same, but for rounding"


def test_bytemtp_does_not_know_of_experiments():
    for path in (ROOT / "bytemtp").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            modules += [str(node.module)] if isinstance(node, ast.ImportFrom) else []
            assert not [name for name in modules if name.split(".")[0] == "experiments"], path


@pytest.mark.parametrize("name", readme.names())
def test_pages_say_what_the_results_say(name):
    """If this fails: `make figures`."""
    experiment = readme.load(name)
    assert readme.page_of(experiment).read_text(encoding="utf-8") == readme.filled(experiment)
    for preset in experiment.presets():
        assert (experiment.folder / f"{preset}.png").exists() == bool(experiment.lines(preset))


def test_the_gallery_shows_all_experiments():
    assert readme.GALLERY.read_text(encoding="utf-8") == readme.gallery()


@pytest.mark.parametrize("name", readme.names())
def test_pictures_can_be_drawn(name, tmp_path, monkeypatch):
    experiment = readme.load(name)
    shutil.copytree(experiment.folder, tmp_path / name, ignore=shutil.ignore_patterns("*.png"))
    monkeypatch.setattr(grid, "FOLDER", tmp_path)
    readme.draw(experiment)
    drawn = {path.stem for path in (tmp_path / name).glob("*.png")}
    assert drawn == {preset for preset in experiment.presets() if experiment.lines(preset)}


def test_a_page_says_which_cells_have_not_been_run(experiment):
    """With no line at all it keeps its text, and the gallery shows no picture."""
    page = "# Why?\n\n**Answer.** Not run yet.\n\n<!-- table cpu -->\nNothing.\n<!-- end -->\n"
    readme.page_of(experiment).write_text(page)
    assert readme.filled(experiment) == page
    assert readme.entry(experiment) == "### [toy](toy/README.md): Why?\n\nNot run yet."
    assert experiment.not_run("cpu") == ["one", "two, wide"]
    shown = Experiment("toy", experiment.score, lambda lines: f"{len(lines)} lines", tables.dots)
    grid.main(shown, ["--seeds", "0", "--only", "one"])
    assert "1 lines\n\nRuns: 1." in readme.filled(shown) and "Not run: `two, wide`.\n<!-- end" in readme.filled(shown)
    grid.main(shown, ["--seeds", "0"])
    assert "Not run:" not in readme.filled(shown)


def test_a_page_without_its_place_for_a_table_is_told():
    with pytest.raises(UserError, match="has 0 places <!-- table cpu -->"):
        readme.put("# Title", "table cpu", "")
    with pytest.raises(UserError, match="has 0 places <!-- table cpu -->"):
        readme.put("<!-- table cpu -->\nText\n<!-- table minute -->\n<!-- end -->", "table cpu", "")


def test_lines_of_the_first_grid_still_count():
    experiment = readme.load("recipe")
    cells = grid.cells_of(experiment, "library", [0])
    assert grid.missing(cells, read_lines(experiment.results)) == []

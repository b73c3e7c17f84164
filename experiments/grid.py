"""What all experiments have in common: cells of settings, trained from several seeds, each finished one kept.

python -m experiments.NAME --seeds 0 1 2
python -m experiments.NAME --preset paper --only "G(5,5), n=1" --jobs 1

experiments/NAME/recipe.toml     by preset: what all cells share ([PRESET.common]), what each changes ([PRESET.cells])
experiments/NAME/__main__.py     EXPERIMENT: how a cell is scored, and the table and picture of the finished ones
experiments/NAME/results.jsonl   one line a finished cell and seed
experiments/NAME/README.md       question and answer, with the tables that `python -m experiments.readme` makes

A cell is one `python -m bytemtp.train` in a process of its own, and a score.  After a kill the same command goes on:
finished cells are read from results.jsonl, and an unfinished training is resumed from its newest checkpoint.
"""

import argparse
import hashlib
import json
import os
import re
import shutil
import subprocess
import tomllib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Any

import torch
from matplotlib.figure import Figure

import bytemtp
from bytemtp.bench.quality import end_of, run_module
from bytemtp.bench.turns import machine
from bytemtp.common.errors import UserError
from bytemtp.common.files import alone, read_object, write_file
from bytemtp.common.jsonl import JsonLinesFile, read_lines
from bytemtp.common.runtime import log, pick_device
from bytemtp.model.checkpoint import step_folders, step_of

FOLDER = Path(__file__).parent
RUNS = Path("runs")
SECTIONS = ("model.", "train.", "data.")
"""Settings that are bytemtp's; others are the experiment's own."""
BEFORE = {
    "train.repeat_rows": 0.0,
    "train.grow_at": 0.7,
    "model.transitions": False,
    "train.far_from": 0.0,
    "train.head_schedule": "constant",
    "train.unembedding_lr": 1.0,
}
"""Unless a cell says otherwise: what presets had when most results were made."""
Line = dict[str, Any]
"""Of results.jsonl: `key` (preset as `grid`, cell, seed, settings, options), figures, and of the training commit,
hardware, threads and minutes; of the score the commit (`scored`)."""
_writing = Lock()


@dataclass(frozen=True)
class Cell:
    """One training run."""

    experiment: str
    preset: str
    name: str
    seed: int
    settings: dict[str, Any]
    options: dict[str, Any]
    """what the preset says beside `common` and `cells`, such as files"""

    @property
    def key(self) -> dict[str, Any]:
        options = {name: value for name, value in self.options.items() if name != "runs"}
        place = {"grid": self.preset, "cell": self.name, "seed": self.seed}
        return place | {"settings": self.settings, "options": options}

    @property
    def folder(self) -> Path:
        """The run's.  Its name has a digest of settings and corpus, so that a run with others is never gone on with.

        A preset may name a folder (`runs`) that it shares with other experiments: cells with the same settings are
        then one run, whatever their names.
        """
        shared = self.options.get("runs")
        name = "run" if shared else f"{self.preset}-{self.name}"
        what = json.dumps([self.settings, self.options.get("train")], sort_keys=True)
        digest = hashlib.sha256(what.encode()).hexdigest()[:8]
        return RUNS / (shared or self.experiment) / re.sub(r"[^\w=-]+", "-", f"{name}-seed{self.seed}-{digest}")


@dataclass(frozen=True)
class Experiment:
    """What is special to one folder of experiments/."""

    name: str
    score: Callable[[Cell], dict[str, Any]]
    """trains a cell (`train`) and scores it: the figures of its line"""
    table: Callable[[Sequence[Line]], str]
    """Markdown of the lines of one preset"""
    draw: Callable[[Sequence[Line]], Figure]

    @property
    def folder(self) -> Path:
        return FOLDER / self.name

    @property
    def results(self) -> Path:
        return self.folder / "results.jsonl"

    def presets(self) -> dict[str, Any]:
        return tomllib.loads((self.folder / "recipe.toml").read_text(encoding="utf-8"))

    def lines(self, preset: str) -> list[Line]:
        """Of the cells that recipe.toml has now, with its settings, in its order."""
        cells = [cell.key for cell in cells_of(self, preset, [0])]
        lines = [(line["key"] | {"seed": 0}, line) for line in read_lines(self.results)]
        known = [(cells.index(key), line["key"]["seed"], line) for key, line in lines if key in cells]
        return [line for _, _, line in sorted(known, key=lambda entry: entry[:2])]

    def not_run(self, preset: str) -> list[str]:
        """Cells of recipe.toml without a line."""
        finished = {line["key"]["cell"] for line in self.lines(preset)}
        return [name for name in self.presets()[preset]["cells"] if name not in finished]


def main(experiment: Experiment, arguments: Sequence[str] | None = None) -> None:
    """Run what is not finished and print the preset's table.

    UserError of the first cell that failed, after all the others.
    """
    presets = experiment.presets()
    options = parser(experiment.name, presets).parse_args(arguments)
    if options.jobs < 1:
        raise UserError(f"--jobs is {options.jobs}; it must be 1 or more")
    todo = missing(cells_of(experiment, options.preset, options.seeds, options.only), read_lines(experiment.results))
    threads = max(1, len(os.sched_getaffinity(0)) // options.jobs)
    os.environ["OMP_NUM_THREADS"] = str(threads)  # of the trainings
    torch.set_num_threads(threads)  # of the scores
    log(f"{experiment.name}: {len(todo)} cells to run, {options.jobs} at a time")
    with ThreadPoolExecutor(options.jobs) as pool:
        errors = [error for error in pool.map(lambda cell: run(experiment, cell), todo) if error]
    if lines := experiment.lines(options.preset):
        print(experiment.table(lines))
    if errors:
        raise errors[0]


def parser(name: str, presets: dict[str, Any]) -> argparse.ArgumentParser:
    result = argparse.ArgumentParser(
        prog=f"python -m experiments.{name}",
        description=f"Train and score the cells of experiments/{name}/recipe.toml, and print the table of all that is "
        "finished.  A killed command goes on where it was.",
    )
    result.add_argument("--preset", choices=list(presets), default=next(iter(presets)))
    result.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    result.add_argument("--only", nargs="+", metavar="CELL", help="these cells; all unless given")
    result.add_argument(
        "--jobs",
        type=int,
        default=1 if torch.cuda.is_available() else len(os.sched_getaffinity(0)),
        help="cells at a time, which share the processor's cores; a core each unless given, one cell on a GPU",
    )
    return result


def cells_of(
    experiment: Experiment, preset: str, seeds: Sequence[int], only: Sequence[str] | None = None
) -> list[Cell]:
    """A seed after the other, so that a run that ends early has whole seeds.  UserError for a cell that is none."""
    grid = experiment.presets()[preset]
    if unknown := set(only or ()) - set(grid["cells"]):
        raise UserError(f"unknown cell {sorted(unknown)[0]!r}; choose from {', '.join(map(repr, grid['cells']))}")
    options = {name: value for name, value in grid.items() if name not in ("common", "cells")}
    return [
        Cell(experiment.name, preset, name, seed, grid["common"] | changes, options)
        for seed in dict.fromkeys(seeds)
        for name, changes in grid["cells"].items()
        if only is None or name in only
    ]


def missing(cells: Sequence[Cell], lines: Sequence[Line]) -> list[Cell]:
    """Those without a line.  One that was measured with other settings counts as missing."""
    keys = [line["key"] for line in lines]
    return [cell for cell in cells if cell.key not in keys]


def run(experiment: Experiment, cell: Cell) -> UserError | None:
    """Train, score, and append the line; or what the user can do about it."""
    log(f"{cell.name}, seed {cell.seed}: begins, see {cell.folder}.log")
    try:
        line = {"key": cell.key, "scored": commit(), **experiment.score(cell)}
    except UserError as error:
        log(f"{cell.name}, seed {cell.seed}: {error}")
        return error
    with _writing:
        if missing([cell], read_lines(experiment.results)):  # else another process has finished it meanwhile
            JsonLinesFile(experiment.results).append([line])
    log(f"{cell.name}, seed {cell.seed}: done")
    return None


def train(
    cell: Cell,
    *paths: str | Path,
    init: Path | None = None,
    program: Sequence[str] = ("bytemtp.train",),
    **settings: Any,
) -> dict[str, Any]:
    """Train a cell into its folder, or go on with what is there; the steps, bytes and minutes that it took, and where.

    init: a run whose weights it starts from.  program: a module, and words before the training's.
    settings: of bytemtp, by dotted name, that follow from the cell's.
    UserError if the command fails.
    """
    chosen = BEFORE | cell.settings | settings | {"train.seed": cell.seed}
    words = [f"--{name}={value}" for name, value in chosen.items() if name.startswith(SECTIONS)]
    start = ["--init", str(init)] if init else []
    cell.folder.parent.mkdir(parents=True, exist_ok=True)
    begun = cell.folder.with_suffix(".json")  # kept for experiments that take the same run later
    with alone(cell.folder.with_suffix(".lock")):  # two cells, even of two commands, may want the same run
        is_begun = (cell.folder / "config.toml").exists()
        if not (is_begun and begun.exists()):  # a training that failed at once, or was deleted, leaves its file
            about = {"commit": commit(), "hardware": machine()["device"], "threads": torch.get_num_threads()}
            write_file(begun, json.dumps(about))
        more = ["--resume"] if is_begun else start
        run_module(cell.folder, *program, *map(str, paths), "--out", str(cell.folder), *more, *words)
    state = end_of(cell.folder)
    took = {"steps": state["step"], "bytes_seen": state["bytes_seen"], "minutes": round(state["elapsed_s"] / 60, 2)}
    return read_object(begun) | took


def train_along(cell: Cell, path: Path, ask: Callable[[bytemtp.ByteMTP], dict[str, Any]]) -> dict[str, Any]:
    """As `train`, with what is asked of the last checkpoint, and of each regular one as `way`.

    A run that was stopped and went on has other checkpoints, too, which no other seed has.
    """
    trained = train(cell, path, **{"train.keep_checkpoints": 1000})
    every = cell.settings["train.checkpoint_every"]
    folders = [folder for folder in step_folders(cell.folder) if step_of(folder) % every == 0]
    way = [{"step": step_of(folder)} | ask(bytemtp.load(folder, pick_device().value)) for folder in folders]
    return trained | way[-1] | {"way": way}


def commit() -> str:
    """Of the code that runs; "+" where it has changes that are not committed, empty where there is no repository."""
    if shutil.which("git") is None:
        return ""

    def git(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(["git", *words], cwd=FOLDER.parent, capture_output=True, text=True)

    head = git("rev-parse", "--short=7", "HEAD").stdout.strip()
    is_changed = git("diff", "--quiet", "HEAD", "--", "*.py", "*.cpp", "*.toml").returncode == 1
    return head + "+" * is_changed

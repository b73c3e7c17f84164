"""`bench quality`: held-out bits per byte after the same minutes on the same files, ours by heads beside a peer.

A *cell* is one contestant trained from one seed.  Seeds come one after the other, and the contestants take turns in
each, so a slow hour of the machine is everybody's.  Each cell is a process of its own: first `bytemtp.train` and then
`bytemtp.evaluate bpb` for ours, `nano_gpt.py` for the peer.  A finished cell has a .json file in the directory, which a
later call reads instead of training again.
"""

import json
import math
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from bytemtp.bench.turns import machine, markdown_table
from bytemtp.common.cli import parse
from bytemtp.common.errors import UserError
from bytemtp.common.files import read_object, write_json, writing
from bytemtp.common.presets import preset
from bytemtp.common.runtime import log
from bytemtp.common.settings import DataConfig, Settings
from bytemtp.data.sources import STANDARD_INPUT, SkipLog, find, real_name
from bytemtp.model.checkpoint import latest

PEER = "peer"
DEFAULTS = {"data.valid_fraction": "0", "train.sample_bytes": "0"}
"""Ours trains on all bytes of the files and all of the time, as the peer does; --ours may say otherwise."""
FIXED = {"train.minutes": "--minutes", "train.seed": "--seeds", "model.n_future": "--heads"}
"""Settings that have an option of their own."""
UNSHARED = ("data.exclude", "data.weights", "data.valid_paths")
"""Settings that change what ours reads, and not what the peer does."""
STUDENT = (
    *(12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228),
    *(2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086),
    *(2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042),
)
"""97.5 % quantiles of Student's t for 1 to 30 degrees of freedom; beyond, the last one is a little too wide."""
SEEDS_FOR_INTERVAL = 3
Report = dict[str, Any]


@dataclass(frozen=True)
class Plan:
    """What is compared."""

    train: tuple[str, ...]
    heldout: tuple[str, ...]
    minutes: float
    seeds: tuple[int, ...]
    preset: str
    heads: tuple[int, ...]
    ours: tuple[str, ...]
    """settings of ours beside the preset, as NAME=VALUE"""

    @property
    def contestants(self) -> list[str]:
        return [*(ours_with(n) for n in self.heads), PEER]

    @property
    def pairs(self) -> list[tuple[str, str]]:
        """Who is set against whom: every number of heads against the first, and the first against the peer."""
        first, *others = (ours_with(n) for n in self.heads)
        return [*((other, first) for other in others), (first, PEER)]


def ours_with(n: int) -> str:
    return f"ours n={n}"


@dataclass(frozen=True)
class _Recipe:
    """Settings and nothing else, for `parse`."""

    settings: Annotated[tyro.conf.FlagConversionOff[Settings], tyro.conf.arg(name="")]


def bench_quality(plan: Plan, directory: Path) -> Report:
    """Train and score what is missing.  UserError for a bad plan, before anything is trained."""
    data = check(plan)
    with writing(directory):
        directory.mkdir(parents=True, exist_ok=True)
    todo = [(seed, name, n) for seed in plan.seeds for name, n in zip(plan.contestants, [*plan.heads, 0], strict=True)]
    for seed, name, n in todo:
        read_cell(directory, name, asked(plan, seed, n))  # finds out about cells of another plan
    cells = []
    for i, (seed, name, n) in enumerate(todo):
        cells.append(cell(plan, directory, seed, name, n, data))
        log(f"{i + 1}/{len(todo)}  {name}, seed {seed}: {cells[-1]['steps']:,} steps, {cells[-1]['bpb']:.4f} bpb")
    return summary(plan, cells)


def check(plan: Plan) -> DataConfig:
    """How the files are opened.  UserError for anything that would fail later."""
    for name in ("train", "heldout", "heads", "seeds"):
        values: tuple[Any, ...] = getattr(plan, name)
        if not values:
            raise UserError(f"{name} has no value; give one or more")
        if len(set(values)) < len(values):
            raise UserError(f"{name} is {values}; name each once")
    if not plan.minutes > 0:
        raise UserError(f"minutes is {plan.minutes}; it must be above 0")
    recipes = [recipe(plan, seed, n) for seed in plan.seeds for n in plan.heads]
    settings = [parse(_Recipe, "--ours", words, _Recipe(preset(plan.preset))).settings for words in recipes]
    training, heldout = (
        {real_name(source): source.name for source in find(paths, SkipLog("error"))}
        for paths in (plan.train, plan.heldout)
    )
    if STANDARD_INPUT in (*training, *heldout):
        raise UserError("- (standard input) can be read only once; save it to a file, for every contestant reads it")
    if both := sorted(heldout[file] for file in training.keys() & heldout.keys()):
        raise UserError(f"{both[0]} is to be trained on and held out; it can only be one of them")
    return settings[0].data


def recipe(plan: Plan, seed: int, n: int) -> list[str]:
    """Settings of `bytemtp.train` for a cell of ours, as --NAME=VALUE.  UserError for what --ours must not name."""
    chosen = {}
    for word in plan.ours:
        name, is_pair, value = word.partition("=")
        name = name.replace("-", "_")
        if not is_pair:
            raise UserError(f"--ours {word}: give settings as NAME=VALUE, such as train.lr=0.002")
        if name in FIXED:
            raise UserError(f"--ours {word}: the option {FIXED[name]} is for that")
        if name in UNSHARED:
            raise UserError(f"--ours {word}: the peer would read other bytes; name files in --train and --heldout")
        chosen[name] = value
    fixed = dict(zip(FIXED, (plan.minutes, seed, n), strict=True))
    return [f"--{name}={value}" for name, value in (DEFAULTS | chosen | fixed).items()]


def asked(plan: Plan, seed: int, n: int) -> Report:
    """What a cell depends on.  n: heads of ours, 0 for the peer.  From `Plan`, without what other cells are for."""
    common = {"train": list(plan.train), "heldout": list(plan.heldout), "minutes": plan.minutes, "seed": seed}
    data = [word for word in plan.ours if word.startswith("data.")]
    return common | ({"n": n, "preset": plan.preset, "ours": list(plan.ours)} if n else {"data": data})


def cell(plan: Plan, directory: Path, seed: int, name: str, n: int, data: DataConfig) -> Report:
    """The result of one contestant from one seed: read, or trained, scored and written down."""
    question = asked(plan, seed, n)
    if (known := read_cell(directory, name, question)) is not None:
        return known
    place = place_of(directory, name, seed)
    log(f"{name}, seed {seed}: {plan.minutes:g} minutes, progress in {place.with_suffix('.log')}")
    measured = train_ours(plan, place, seed, n) if n else train_peer(plan, place, seed, data)
    result = {"contestant": name, "seed": seed, "asked": question, **measured}
    write_json(place.with_suffix(".json"), result)
    return result


def place_of(directory: Path, name: str, seed: int) -> Path:
    """Of a cell: the folder of its run; its result and its log stand beside it."""
    return directory / f"{name.replace(' n=', '-n')}-seed{seed}"


def read_cell(directory: Path, name: str, question: Report) -> Report | None:
    """A finished cell; None if there is none.  UserError if it answers another question, or is no result."""
    path = place_of(directory, name, question["seed"]).with_suffix(".json")
    if not path.exists():
        return None
    try:
        result: Report = json.loads(path.read_text(encoding="utf-8"))
        before = result["asked"]
    except (ValueError, KeyError, TypeError, OSError) as error:
        raise UserError(f"{path} is no result of bench quality ({error}); delete it to measure again") from None
    if before != question:
        key = next(key for key in {**before, **question} if before.get(key) != question.get(key))
        raise UserError(
            f"{path} was measured with {key} = {before.get(key)}, not {question.get(key)}; name another --directory"
        )
    return result


def train_ours(plan: Plan, place: Path, seed: int, n: int) -> Report:
    """Train by the public command and score by the public command; the run stays in the folder `place`.

    Its log and its scores stand beside it: `place` must have no dot in its name.  UserError if a command fails.
    """
    options = ["--out", str(place), "--overwrite", "--preset", plan.preset, *recipe(plan, seed, n)]
    run_module(place, "bytemtp.train", *plan.train, *options)
    state = end_of(place)
    return {"steps": state["step"], "bytes_seen": state["bytes_seen"], **bits_per_byte(place, plan.heldout)}


def end_of(place: Path) -> Report:
    """What the newest checkpoint says of a training that has ended well."""
    folder = latest(place)
    assert folder is not None
    return read_object(folder / "state.json")


def bits_per_byte(place: Path, heldout: Sequence[str]) -> Report:
    """What `python -m bytemtp.evaluate bpb` says of a run.  UserError if it fails."""
    with tempfile.TemporaryDirectory() as folder:
        score = Path(folder, "bpb.json")
        run_module(place, "bytemtp.evaluate", "bpb", str(place), *heldout, "--json", str(score))
        return read_object(score)


def train_peer(plan: Plan, place: Path, seed: int, data: DataConfig) -> Report:
    files = {"training": plan.train, "heldout": plan.heldout, "data": asdict(data)}
    spec = json.dumps({**files, "minutes": plan.minutes, "seed": seed})
    result: Report = json.loads(run_module(place, "bytemtp.bench.nano_gpt", spec).splitlines()[-1])
    return result


def run_module(place: Path, module: str, *arguments: str) -> str:
    """Standard output of a command; its messages go into a log.  UserError with the last of them if it fails."""
    path = place.with_suffix(".log")
    with path.open("a", encoding="utf-8") as errors:
        command = [sys.executable, "-W", "ignore", "-m", module, *arguments]
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=errors, text=True)
    if done.returncode != 0:
        last = (path.read_text(encoding="utf-8").strip().splitlines() or ["it said nothing"])[-1]
        raise UserError(f"{module} failed, see {path}: {last.removeprefix('error: ')}")
    return done.stdout


def summary(plan: Plan, cells: list[Report]) -> Report:
    """Means, spreads and paired differences over the seeds.  UserError if not all were scored on the same bytes."""
    sizes = {(cell["bytes"], cell["documents"]) for cell in cells}
    if len(sizes) > 1:
        raise UserError("the held-out files have changed between two cells; name another --directory")
    contestants = {name: of_contestant([c for c in cells if c["contestant"] == name]) for name in plan.contestants}
    bits = {name: result["bpb"]["by_seed"] for name, result in contestants.items()}
    (size, documents), first = sizes.pop(), cells[0]
    return {
        "bench": "quality",
        "machine": machine(),
        **asdict(plan),
        "bytes": size,
        "documents": documents,
        "contestants": contestants,
        "differences": [
            {"of": of, "minus": minus, **spread([a - b for a, b in zip(bits[of], bits[minus], strict=True)])}
            for of, minus in plan.pairs
        ],
        "compressed": {name: 8 * length / size for name, length in first["compressed_bytes"].items()},
        "cells": cells,
    }


def of_contestant(cells: list[Report]) -> Report:
    result = {name: statistics.mean(cell[name] for cell in cells) for name in ("steps", "bytes_seen")}
    result["bpb"] = spread([cell["bpb"] for cell in cells])
    heads = zip(*(cell.get("bpb_per_head", []) for cell in cells), strict=True)
    result["bpb_per_head"] = [None if None in bits else statistics.mean(bits) for bits in heads]
    return result


def spread(values: Sequence[float]) -> Report:
    """Mean, standard deviation (two values or more) and 95 % interval of the mean (three or more), by Student's t."""
    mean, count = statistics.mean(values), len(values)
    sd = statistics.stdev(values) if count > 1 else None
    interval = None
    if sd is not None and count >= SEEDS_FOR_INTERVAL:
        half = STUDENT[min(count - 1, len(STUDENT)) - 1] * sd / math.sqrt(count)
        interval = [mean - half, mean + half]
    return {"mean": mean, "sd": sd, "interval": interval, "by_seed": list(values)}


def print_quality(report: Report) -> None:
    """Three tables: bits per byte, differences, and heads where somebody has several."""
    seeds = [f"seed {seed}" for seed in report["seeds"]]
    rows = [
        [name, f"{result['steps']:,.0f}", f"{result['bytes_seen']:,.0f}", *numbers(result["bpb"], "")]
        for name, result in report["contestants"].items()
    ]
    rows += [[name, "", "", f"{bits:.4f}", *[""] * len(seeds)] for name, bits in report["compressed"].items()]
    print(
        f"{report['minutes']:g} minutes each, {report['bytes']:,} held-out bytes in {report['documents']:,} documents"
    )
    print(markdown_table(rows, ["contestant", "steps", "bytes seen", "bits per byte", *seeds]))
    rows = [
        [f"{d['of']} - {d['minus']}", *numbers(d, "+"), "-" if d["interval"] is None else interval_text(d["interval"])]
        for d in report["differences"]
    ]
    print()
    print(markdown_table(rows, ["difference, bits per byte", "mean", *seeds, "95 % interval, paired"]))
    print_heads({name: result["bpb_per_head"] for name, result in report["contestants"].items()})


def numbers(result: Report, sign: str) -> list[str]:
    """Mean with standard deviation, then the value of each seed."""
    deviation = "" if result["sd"] is None else f" +- {result['sd']:.4f}"
    return [f"{result['mean']:{sign}.4f}{deviation}", *(f"{value:{sign}.4f}" for value in result["by_seed"])]


def interval_text(interval: Sequence[float]) -> str:
    low, high = interval
    return f"{low:+.4f} to {high:+.4f}"


def print_heads(by_contestant: dict[str, list[float | None]]) -> None:
    """Bits per byte of each head, of contestants that have several."""
    several = {name: bits for name, bits in by_contestant.items() if len(bits) > 1}
    if not several:
        return
    most = max(map(len, several.values()))
    rows = [
        [name, *("-" if value is None else f"{value:.3f}" for value in bits), *[""] * (most - len(bits))]
        for name, bits in several.items()
    ]
    print()
    print(markdown_table(rows, ["bits per byte by head", *(str(i + 1) for i in range(most))]))

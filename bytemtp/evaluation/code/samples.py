"""Samples of a model for code problems: which ones, drawn several at a time, in a file that a killed run goes on from.

A sample belongs to a problem, a temperature, a top-p and a number.  These and the seed alone give its random numbers,
so it does not matter which samples were drawn before it, in which process, or how many at a time.  With the native
engine that is so to the bit, and only what is missing is drawn.  Other engines round by what is computed together: for
them a problem that lacks samples has all of them drawn again, and those that are there stay.

DIR/
    settings.json               what the samples depend on; a run with other settings may not continue them
    samples.jsonl               {"task_id", "completion", "temperature", "top_p", "index"}, in the order of `Plan.keys`
    samples.1-of-4.jsonl        the same by one process of several, before they are brought together
"""

import hashlib
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import torch

from bytemtp.common.errors import UserError
from bytemtp.common.files import read_object, write_file, write_json
from bytemtp.common.jsonl import JsonLinesFile, line_of, read_lines
from bytemtp.common.runtime import progress
from bytemtp.decoding.engines.native.engine import NativeEngine
from bytemtp.decoding.engines.select import engine_kind
from bytemtp.decoding.generate import Mode, Options
from bytemtp.evaluation.code.problems import Problem, truncate
from bytemtp.model.model import ByteMTP

SETTINGS, SAMPLES = "settings.json", "samples.jsonl"


class Cell(NamedTuple):
    """One way to sample."""

    temperature: float
    top_p: float


class Key(NamedTuple):
    """Which sample."""

    cell: Cell
    task_id: str
    number: int


@dataclass(frozen=True)
class Plan:
    """Which samples there are to be, and how they are drawn."""

    problems: Sequence[Problem]
    cells: Sequence[Cell]
    samples: int
    """of each problem in each cell"""
    max_bytes: int
    mode: Mode
    seed: int

    def keys(self) -> list[Key]:
        """All samples, in order."""
        tasks = [problem.task_id for problem in self.problems]
        return [Key(cell, task, i) for cell in self.cells for task in tasks for i in range(self.samples)]


def claim(folder: Path, settings: dict[str, Any]) -> None:
    """Make `folder` the place of samples with these settings.  UserError if it has samples with others."""
    path = folder / SETTINGS
    try:
        has_samples = folder.is_dir() and any(folder.glob("samples*.jsonl"))  # before: another shard may begin just now
        if path.exists():
            _compare(read_object(path), settings, folder)
            return
        if has_samples:
            raise UserError(f"{folder} holds samples but no {SETTINGS}, so what they are is not known; choose another")
        folder.mkdir(parents=True, exist_ok=True)
        write_json(path, settings, "; --out must name a folder that can be written to")
    except OSError as error:
        raise UserError(f"cannot write to {folder}: {error.strerror}; --out must name a folder that can be") from error


def _compare(old: dict[str, Any], new: dict[str, Any], folder: Path) -> None:
    for name in new:
        if old.get(name) != new[name]:
            raise UserError(
                f"{folder} was begun with {name} {old.get(name)}, not {new[name]}; give the old value, or another --out"
            )


def digest(data: bytes) -> str:
    """By which one text is told from another."""
    return hashlib.sha256(data).hexdigest()[:16]


def fingerprint(model: ByteMTP) -> str:
    """By which the weights of one checkpoint are told from another's."""
    found = hashlib.sha256()
    for tensor in model.state_dict().values():
        found.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return found.hexdigest()[:16]


def read_samples(folder: Path) -> dict[Key, str]:
    """All samples that are in `folder`, by whichever process."""
    found: dict[Key, str] = {}
    for path in sorted(folder.glob("samples*.jsonl")):
        for line in read_lines(path):
            try:
                found[Key(Cell(line["temperature"], line["top_p"]), line["task_id"], line["index"])] = line[
                    "completion"
                ]
            except (KeyError, TypeError):
                raise UserError(f"{path} has a line that is no sample of passk; choose another folder") from None
    return found


def draw_missing(model: ByteMTP, plan: Plan, folder: Path, *, batch: int, shard: tuple[int, int]) -> int:
    """Draw the samples that `folder` does not have yet, and return how many bytes they are.

    batch: how many at a time.  shard: (i, n) draws only those of problems i, i + n, ..., counted from 1, into a file of
    their own.
    """
    number, of = shard
    out = JsonLinesFile(folder / (SAMPLES if of == 1 else f"samples.{number}-of-{of}.jsonl"))
    done = read_samples(folder)
    if strangers := sorted(done.keys() - set(plan.keys())):
        raise UserError(
            f"{folder} holds a sample of {strangers[0].task_id}, which was not asked for; choose another --out"
        )
    mine = plan.problems[number - 1 :: of]
    each_alone = engine_kind("auto", model) is NativeEngine
    total = 0
    with progress(len(plan.cells) * len(mine) * plan.samples, "samples", "drawn") as bar:
        for cell, problem in product(plan.cells, mine):
            keys = {i: Key(cell, problem.task_id, i) for i in range(plan.samples)}
            missing = {i: key for i, key in keys.items() if key not in done}
            bar.update(len(keys) - len(missing))
            indices = list(missing if each_alone or not missing else keys)
            for i, completion in draw_samples(model, plan, cell, problem, indices, batch):
                if i in missing:
                    out.append([sample_line(missing[i], completion)])
                    total += len(completion.encode())
                    bar.update()
    return total


def draw_samples(
    model: ByteMTP, plan: Plan, cell: Cell, problem: Problem, indices: Sequence[int], batch: int
) -> Iterator[tuple[int, str]]:
    """These numbers and their completions, as each ends.  Bytes that are not UTF-8 become U+FFFD."""
    stop = [text.encode() for text in problem.stops]
    options = Options(mode=plan.mode, temperature=cell.temperature, top_p=cell.top_p, stop=stop)
    prompt = problem.prompt.encode("utf-8", "surrogatepass")
    rows = {index: options.row(prompt, index, plan.max_bytes) for index in indices}
    for index, row in rows.items():
        row.random = random.Random(f"{plan.seed} {problem.task_id} {cell.temperature} {cell.top_p} {index}")
    for index, row in options.ended(model, rows, batch):
        yield index, truncate(problem, row.data.decode("utf-8", "replace"))


def sample_line(key: Key, completion: str) -> dict[str, Any]:
    """A line of samples.jsonl."""
    return {
        "task_id": key.task_id,
        "completion": completion,
        "temperature": key.cell.temperature,
        "top_p": key.cell.top_p,
        "index": key.number,
    }


def gather(plan: Plan, folder: Path) -> list[dict[str, Any]]:
    """All samples in order, also of several processes, brought together in samples.jsonl.

    UserError if one is missing.
    """
    found = read_samples(folder)
    keys = plan.keys()
    if missing := [key for key in keys if key not in found]:
        raise UserError(f"{len(missing)} samples are missing in {folder}, the first of {missing[0].task_id}")
    records = [sample_line(key, found[key]) for key in keys]
    if read_lines(folder / SAMPLES) != records:
        write_file(folder / SAMPLES, b"".join(map(line_of, records)))
    return records

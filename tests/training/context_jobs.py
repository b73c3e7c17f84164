"""The jobs of test_context_parallel.py: a script that imports torch once, then forks the processes of job after job.

    python tests/training/context_jobs.py FOLDER fast|slow

FOLDER/JOB/ gets the runs of a job, FOLDER/JOB.json exit statuses and what was written to standard error.
"""

import json
import os
import signal
import sys
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any, get_args

import torch
import torch.distributed.fsdp  # here it is done once, before the processes are forked
import torch.distributed.tensor

from bytemtp.common.runtime import pick_device
from bytemtp.common.settings import Topology, changed
from bytemtp.data.stream import Batch
from bytemtp.model import context_parallel
from bytemtp.training.distributed import joined
from bytemtp.training.trainer import Trainer, train
from experiments.launch.measure import SMALL, measured
from tests.training.distributed_jobs import BASE, command, fork, write_corpus

PARTED = changed(BASE, **{"model.attention_heads": 4})
FAST: dict[str, dict[str, Any]] = {
    "deepseek, muon": {"model.topology": "deepseek", "train.optimizer": "muon"},
    "transitions, grouped queries": {"model.transitions": True, "model.kv_heads": 2, "train.far_rows": 0.5},
    "windows, growing rows": {"model.window": 5, "train.first_seq_len": 4, "train.grow_at": 0.5},
}
"""In float64."""
SLOW: dict[str, dict[str, Any]] = {topology: {"model.topology": topology} for topology in get_args(Topology)}
SLOW |= {
    "one head": {"model.n_future": 1},
    "joint": {"train.backward": "joint", "train.head_weights": "equal"},
    "repeating rows": {"train.repeat_rows": 0.4},
    "far heads that wait": {"train.far_from": 0.6, "model.topology": "parallel"},
    "recomputed": {"train.activation_checkpointing": True},
    "normed queries": {"model.qk_norm": True},
    "frozen": {"train.freeze": "trunk", "model.topology": "parallel"},
    "in files": {"data.shuffle": False},
}
WAYS: dict[str, tuple[int, dict[str, Any]]] = {
    "two": (2, {"train.context_parallel": 2}),
    "four parts": (4, {"train.context_parallel": 4, "model.kv_heads": 0}),
    "two readers": (4, {"train.context_parallel": 2}),
    "sharded": (4, {"train.context_parallel": 2, "train.parallel": "fsdp"}),
    "copies": (4, {"train.context_parallel": 2, "train.parallel": "fsdp", "train.shards": 2}),
}
"""How many processes, and how they share."""
KILLED = {"killed forward": 3, "killed backward": 10}
"""After so many exchanges of a step: four a layer forward, in two layers, and as many backward."""
RELAY = [
    ("four", 4, 3, {"train.context_parallel": 2, "train.parallel": "fsdp"}),
    ("one", 1, 5, {"train.context_parallel": 1, "train.parallel": "ddp"}),
    ("last", 2, 0, {"train.context_parallel": 2}),
]
"""One run by several jobs in turn: how many processes, up to which step, and how they share."""
MEASURED = [
    changed(SMALL, **{"train.seq_len": 256, "train.context_parallel": 1}),
    changed(SMALL, **{"train.seq_len": 256, "train.context_parallel": 2}),
    changed(SMALL, **{"train.seq_len": 256, "train.context_parallel": 2, "train.activation_checkpointing": True}),
]


def cases_of(job: str) -> dict[str, dict[str, Any]]:
    """Those that it can run: of `FAST` some have fewer heads of keys than four."""
    return SLOW if job == "four parts" else FAST | SLOW


def run_cases(folder: Path, job: str, cases: dict[str, dict[str, Any]], values: dict[str, Any]) -> None:
    torch.set_default_dtype(torch.float64)
    with joined() as world:
        for case, own in cases.items():
            init = folder / "one" / "parallel" if case == "frozen" else None
            run = folder / job / case
            train(changed(PARTED, **own | values), [str(folder / "corpus")], run, device="cpu", init=init, world=world)


def compile_one(folder: Path, job: str, values: dict[str, Any]) -> None:
    """In float32; whole rows are attended inside of the compiled layer."""
    own = changed(PARTED, **{"train.compile": "true"}, **values)
    with joined() as world:
        train(own, [str(folder / "corpus")], folder / job, device="cpu", world=world)


def relay(folder: Path, job: str, stop: int, values: dict[str, Any], run: str = "relay") -> None:
    torch.set_default_dtype(torch.float64)
    with joined() as world:
        resume = (folder / run).exists()
        own = changed(PARTED, **values)
        train(own, [str(folder / "corpus")], folder / run, device="cpu", world=world, resume=resume, stop_after=stop)


def measure(folder: Path, job: str) -> None:
    """What a step holds and sends, foreseen and measured: by whole rows, then by parts of them."""
    with joined() as world:
        place, lines = pick_device("cpu"), []
        for own in MEASURED:
            parts = replace(world, context=own.train.context_parallel)
            lines.append(measured(own, ("ddp", 0), place, parts))
        if world.is_first:
            (folder / f"{job}.lines").write_text(json.dumps([asdict(line) for line in lines]))


def killed(folder: Path, job: str) -> None:
    """Process 1 is, at an exchange of the first step: the other waits for its part of a row."""
    exchange, left = context_parallel._exchanged, iter(range(KILLED[job]))

    def exchanged(parts: torch.Tensor, group: Any) -> torch.Tensor:
        if os.environ["RANK"] == "1" and next(left, None) is None:
            os.kill(os.getpid(), signal.SIGKILL)
        return exchange(parts, group)

    context_parallel._exchanged = exchanged
    command(folder, job, "--train.context-parallel=2")()


def other_rows(folder: Path, job: str) -> None:
    """Process 1 reads something else from its fourth batch on."""
    own, batches = Trainer._own, iter(range(3))

    def changed_rows(self: Trainer, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        is_other = self.world.rank == 1 and next(batches, None) is None
        return own(self, replace(batch, octets=batch.octets + 1) if is_other else batch)

    Trainer._own = changed_rows  # type: ignore[method-assign]
    command(folder, job, "--train.context-parallel=2")()


def run_fast(folder: Path) -> None:
    fork(folder, "one", 1, partial(run_cases, cases=FAST, values={}))
    for job in ("two", "sharded"):
        fork(folder, job, WAYS[job][0], partial(run_cases, cases=FAST, values=WAYS[job][1]))
    fork(folder, "whole", 1, partial(relay, stop=0, values={}, run="whole"))
    for job, size, stop, values in RELAY:
        fork(folder, f"relay {job}", size, partial(relay, stop=stop, values=values))
    fork(folder, "measure", 4, measure)
    for job in KILLED:
        fork(folder, job, 2, killed)
    fork(folder, "other rows", 2, other_rows)


def run_slow(folder: Path) -> None:
    fork(folder, "one", 1, partial(run_cases, cases=FAST | SLOW, values={}))
    for job, (size, values) in WAYS.items():
        fork(folder, job, size, partial(run_cases, cases=cases_of(job), values=values))
    fork(folder, "compiled", 1, partial(compile_one, values={}))
    fork(folder, "compiled parts", 2, partial(compile_one, values={"train.context_parallel": 2}))


if __name__ == "__main__":
    write_corpus(Path(sys.argv[1]) / "corpus")
    {"fast": run_fast, "slow": run_slow}[sys.argv[2]](Path(sys.argv[1]))

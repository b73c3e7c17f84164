"""The jobs of test_sharding.py: as a script it imports torch once, then forks the processes of one job after the other.

    python tests/training/sharding_jobs.py FOLDER fast|slow

FOLDER/JOB/ gets the runs of a job, FOLDER/JOB.json exit statuses and what was written to standard error.
"""

import json
import os
import signal
import sys
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, get_args

import torch
import torch.distributed.fsdp  # here it is done once, before the processes are forked
import torch.distributed.tensor
from safetensors.torch import save_file
from torch.profiler import ProfilerActivity, profile

from bytemtp.common.runtime import pick_device
from bytemtp.common.settings import Topology, changed
from bytemtp.common.shards import local, whole
from bytemtp.model.model import ByteMTP
from bytemtp.training import trainer
from bytemtp.training.distributed import joined
from bytemtp.training.loss import backward
from bytemtp.training.optimizer import Optimizers
from bytemtp.training.sharding import build, shard
from bytemtp.training.trainer import train
from experiments.launch.measure import SMALL, measured, most_held, ways
from tests.training.distributed_jobs import BASE, before_step, command, fork, write_corpus

CASES: dict[str, dict[str, Any]] = {
    "parallel, adamw": {"model.topology": "parallel"},
    "deepseek, muon": {"model.topology": "deepseek", "train.optimizer": "muon", "model.order_head": True},
}
"""In float64."""
SLOW: dict[str, dict[str, Any]] = {
    f"{topology}, {optimizer}": {"model.topology": topology, "train.optimizer": optimizer}
    for topology in get_args(Topology)
    for optimizer in ("adamw", "muon")
}
SLOW |= {  # the frozen ones start from the first
    "joint": {"train.backward": "joint", "train.head_weights": "equal", "model.order_head": True},
    "growing rows": {"train.first_seq_len": 4, "train.grow_at": 0.5},
    "far heads that wait": {"model.topology": "parallel", "train.optimizer": "muon", "train.far_from": 0.6},
    "transitions": {"model.transitions": True, "train.far_rows": 1.0},
    "for drafts": {"train.tv_from": 0.5, "model.topology": "parallel"},
    "recomputed": {"train.activation_checkpointing": True},
    "frozen, parallel": {"model.topology": "parallel", "train.freeze": "trunk"},
    "frozen, linear": {"model.topology": "linear", "model.layers": 2, "train.freeze": "trunk"},
    "frozen, replicated": {"model.topology": "replicated", "model.layers": 2, "train.freeze": "trunk"},
    "no clipping": {"train.grad_clip": 0.0},
    "odd shapes": {"model.dim": 18, "model.ffn_dim": 23, "model.attention_heads": 3},
}
FOUR: dict[str, dict[str, Any]] = {
    "four, causal": {"model.topology": "causal", "train.optimizer": "muon", "train.accumulate": 1},
    "four, replicated": {"model.topology": "replicated", "train.far_rows": 0.5, "model.ffn_dim": 22},
}
COPIES: dict[str, dict[str, Any]] = {
    "copies, parallel, adamw": {"model.topology": "parallel", "train.far_rows": 0.5},
    "copies, deepseek, muon": {"model.topology": "deepseek", "train.optimizer": "muon", "train.far_rows": 0.5},
}
"""For four processes, of which two share a copy of the model.  In float64."""
SINGLE: dict[str, dict[str, Any]] = {
    "float32, adamw": {"train.warmup": 0},
    "float32, muon": {"train.optimizer": "muon"},
}
"""In float32."""
HALF: dict[str, dict[str, Any]] = {
    "bfloat16, adamw": {"train.dtype": "bfloat16"},
    "bfloat16, muon": {"train.dtype": "bfloat16", "train.optimizer": "muon", "model.topology": "causal"},
}
"""Products in bfloat16: two processes with all weights each against two that share them out."""
MEASURED = changed(SMALL, **{"train.seq_len": 64})
MADE = changed(
    BASE, **{"model.dim": 64, "model.ffn_dim": 176, "model.layers": 20, "model.transitions": True, "train.seed": 3}
)
WEIGHED = changed(BASE, **{"model.topology": "causal", "train.optimizer": "muon"})
RELAY = [
    ("four", 4, 3, {"train.parallel": "fsdp", "train.shards": 2}),
    ("one", 1, 5, {"train.parallel": "ddp"}),
    ("eight", 8, 7, {"train.parallel": "fsdp", "train.shards": 0}),
    ("both", 2, 8, {"train.parallel": "ddp"}),
    ("two", 2, 0, {"train.parallel": "fsdp"}),
]
"""One run by several jobs in turn: how many processes, up to which step, and how they share."""


def run_cases(
    folder: Path, job: str, cases: dict[str, dict[str, Any]], dtype: torch.dtype, parallel: str, shards: int
) -> None:
    torch.set_default_dtype(dtype)
    with joined() as world:
        for case, values in cases.items():
            init = folder / "one" / "parallel, adamw" if "frozen" in case else None
            own = changed(BASE, **values | {"train.parallel": parallel, "train.shards": shards})
            train(own, [str(folder / "corpus")], folder / job / case, device="cpu", init=init, world=world)


def relay(folder: Path, job: str, stop: int, values: dict[str, Any], run: str = "relay") -> None:
    torch.set_default_dtype(torch.float64)
    own = changed(BASE, **{"train.optimizer": "muon", "train.accumulate": 1, "train.far_rows": 0.5}, **values)
    with joined() as world:
        resume = (folder / run).exists()
        train(own, [str(folder / "corpus")], folder / run, device="cpu", world=world, resume=resume, stop_after=stop)


def weigh(folder: Path, job: str, shards: int) -> None:
    """Bytes of weights, gradients and moments that each process holds after a step."""
    with joined() as world:
        model = ByteMTP(WEIGHED.model)
        shard(model, torch.float32, torch.device("cpu"), shards)
        optimizer = Optimizers(model, WEIGHED.train, world)
        ids = torch.arange(2 * 19).view(2, 19)
        backward(model, ids, torch.zeros_like(ids))
        optimizer.step()
        held = [*model.parameters(), *(p.grad for p in model.parameters() if p.grad is not None)]
        held += [state[key] for _, _, state, keys in optimizer.states() for key in keys if key != "step"]
        size = sum(local(x).numel() * x.itemsize for x in held)
        (folder / f"{job}.{world.rank}.json").write_text(json.dumps(size))


def made(folder: Path, job: str) -> None:
    """Bytes that each process has at the most while the model is made, and the model's weights."""
    with joined() as world:
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as found:
            model = build(MADE, None, torch.device("cpu"), sharded=True)
        (folder / f"{job}.{world.rank}.json").write_text(json.dumps(most_held(found)))
        weights = {name: whole(x) for name, x in model.state_dict().items()}
        if world.is_first:
            save_file(weights, folder / f"{job}.safetensors")


def measure(folder: Path, job: str) -> None:
    """What a step holds and sends, foreseen and measured."""
    with joined() as world:
        place = pick_device("cpu")
        lines = [measured(MEASURED, way, place, world) for way in ways(world.size)]
        half = changed(MEASURED, **{"train.dtype": "bfloat16", "train.optimizer": "muon"})
        lines += [measured(half, ("fsdp", 2), place, world)]
        if world.is_first:
            (folder / f"{job}.lines").write_text(json.dumps([asdict(line) for line in lines]))


def killed(folder: Path, job: str) -> None:
    """Process 1 is killed before a step, or inside, when the others wait for its rows of a layer."""
    torch.set_default_dtype(torch.float64)
    if os.environ["RANK"] == "1" and job == "killed inside":
        trainer.backward = lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL)  # type: ignore[assignment]
    elif job == "killed before":
        before_step(1, 5, lambda: os.kill(os.getpid(), signal.SIGKILL))
    command(folder, job, "--train.parallel=fsdp")()


def cases_of(
    cases: dict[str, dict[str, Any]], dtype: torch.dtype, parallel: str = "auto", shards: int = 0
) -> Callable[..., None]:
    return partial(run_cases, cases=cases, dtype=dtype, parallel=parallel, shards=shards)


def run_fast(folder: Path) -> None:
    fork(folder, "one", 1, cases_of(CASES | COPIES, torch.float64))
    fork(folder, "two", 2, cases_of(CASES, torch.float64, "fsdp"))
    fork(folder, "copies", 4, cases_of(COPIES, torch.float64, "fsdp", 2))
    fork(folder, "single", 1, cases_of(SINGLE, torch.float32))
    fork(folder, "singles", 2, cases_of(SINGLE, torch.float32, "fsdp"))
    fork(folder, "whole", 1, partial(relay, stop=0, values={}, run="whole"))
    for job, size, stop, values in RELAY:
        fork(folder, f"relay {job}", size, partial(relay, stop=stop, values=values))
    fork(folder, "weigh", 2, partial(weigh, shards=0))
    fork(folder, "weigh copies", 4, partial(weigh, shards=2))
    fork(folder, "made", 4, made)
    fork(folder, "measure", 4, measure)
    for job in ("killed before", "killed inside"):
        fork(folder, job, 2, killed)


def run_slow(folder: Path) -> None:
    fork(folder, "one", 1, cases_of(SLOW | FOUR, torch.float64))
    fork(folder, "two", 2, cases_of(SLOW, torch.float64, "fsdp"))
    fork(folder, "four", 4, cases_of(FOUR, torch.float64, "fsdp"))
    fork(folder, "ddp", 2, cases_of(HALF, torch.float32, "ddp"))
    fork(folder, "fsdp", 2, cases_of(HALF, torch.float32, "fsdp"))


if __name__ == "__main__":
    write_corpus(Path(sys.argv[1]) / "corpus")
    {"fast": run_fast, "slow": run_slow}[sys.argv[2]](Path(sys.argv[1]))

"""The jobs of test_sharding.py: as a script it imports torch once, then forks the processes of one job after the other.

    python tests/training/sharding_jobs.py FOLDER fast|slow

FOLDER/JOB/ gets the runs of a job, FOLDER/JOB.json exit statuses and what was written to standard error.
"""

import json
import os
import signal
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, get_args

import torch
import torch.distributed.fsdp  # here it is done once, before the processes are forked
import torch.distributed.tensor

from bytemtp.common.settings import Topology, changed
from bytemtp.common.shards import local
from bytemtp.model.model import ByteMTP
from bytemtp.training import trainer
from bytemtp.training.distributed import joined
from bytemtp.training.loss import backward
from bytemtp.training.optimizer import Optimizers
from bytemtp.training.sharding import shard
from bytemtp.training.trainer import train
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
    "transitions": {"model.transitions": True, "train.far_rows": 1.0},
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
WEIGHED = changed(BASE, **{"model.topology": "causal", "train.optimizer": "muon"})
RELAY = [("two", 3, "fsdp"), ("one", 5, "ddp"), ("both", 7, "ddp"), ("again", 0, "fsdp")]
"""One run by several jobs in turn: each up to a step, and how its processes share."""


def run_cases(folder: Path, job: str, cases: dict[str, dict[str, Any]], dtype: torch.dtype, parallel: str) -> None:
    torch.set_default_dtype(dtype)
    with joined() as world:
        for case, values in cases.items():
            init = folder / "one" / "parallel, adamw" if "frozen" in case else None
            own = changed(BASE, **values | {"train.parallel": parallel})
            train(own, [str(folder / "corpus")], folder / job / case, device="cpu", init=init, world=world)


def relay(folder: Path, job: str, stop: int, parallel: str, run: str = "relay") -> None:
    torch.set_default_dtype(torch.float64)
    own = changed(BASE, **{"train.parallel": parallel, "train.optimizer": "muon"})
    with joined() as world:
        resume = (folder / run).exists()
        train(own, [str(folder / "corpus")], folder / run, device="cpu", world=world, resume=resume, stop_after=stop)


def weigh(folder: Path, job: str) -> None:
    """Bytes of weights, gradients and moments that each process holds after a step."""
    with joined() as world:
        model = ByteMTP(WEIGHED.model)
        shard(model, torch.float32, torch.device("cpu"))
        optimizer = Optimizers(model, WEIGHED.train, world)
        ids = torch.arange(2 * 19).view(2, 19)
        backward(model, ids, torch.zeros_like(ids))
        optimizer.step()
        held = [*model.parameters(), *(p.grad for p in model.parameters() if p.grad is not None)]
        held += [state[key] for _, _, state, keys in optimizer.states() for key in keys if key != "step"]
        size = sum(local(x).numel() * x.itemsize for x in held)
        (folder / f"{job}.{world.rank}.json").write_text(json.dumps(size))


def killed(folder: Path, job: str) -> None:
    """Process 1 is killed before a step, or inside, when the others wait for its rows of a layer."""
    torch.set_default_dtype(torch.float64)
    if os.environ["RANK"] == "1" and job == "killed inside":
        trainer.backward = lambda *rest: os.kill(os.getpid(), signal.SIGKILL)  # type: ignore[assignment]
    elif job == "killed before":
        before_step(1, 5, lambda: os.kill(os.getpid(), signal.SIGKILL))
    command(folder, job, "--train.parallel=fsdp")()


def cases_of(cases: dict[str, dict[str, Any]], dtype: torch.dtype, parallel: str = "auto") -> Callable[..., None]:
    return partial(run_cases, cases=cases, dtype=dtype, parallel=parallel)


def run_fast(folder: Path) -> None:
    fork(folder, "one", 1, cases_of(CASES, torch.float64))
    fork(folder, "two", 2, cases_of(CASES, torch.float64, "fsdp"))
    fork(folder, "single", 1, cases_of(SINGLE, torch.float32))
    fork(folder, "singles", 2, cases_of(SINGLE, torch.float32, "fsdp"))
    fork(folder, "whole", 1, partial(relay, stop=0, parallel="auto", run="whole"))
    for job, stop, parallel in RELAY:
        fork(folder, f"relay {job}", 1 if job == "one" else 2, partial(relay, stop=stop, parallel=parallel))
    fork(folder, "weigh", 2, weigh)
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

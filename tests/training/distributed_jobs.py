"""The jobs of test_distributed.py.  As a script it imports torch once, then forks the processes of job after job.

    python tests/training/distributed_jobs.py FOLDER

Each process finds itself as torchrun would have started it; with torchrun, the script is one process of a single job:

    torchrun --nproc-per-node 2 tests/training/distributed_jobs.py FOLDER JOB

FOLDER/JOB/ gets the runs and gradients of a job, and
FOLDER/JOB.json exit statuses and what was written to standard error.
"""

import json
import os
import random
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable
from itertools import count, cycle
from pathlib import Path
from typing import Any, get_args

import torch
import torch._dynamo  # an optimizer imports it late: here it is done once, before the processes are forked
from safetensors.torch import save_file

from bytemtp.common.cli import run_main
from bytemtp.common.errors import UserError
from bytemtp.common.settings import DataConfig, ModelConfig, Settings, Topology, TrainConfig, changed
from bytemtp.train import main
from bytemtp.training import trainer
from bytemtp.training.distributed import is_restarted, joined
from bytemtp.training.optimizer import Optimizers
from bytemtp.training.trainer import Trainer, train

BASE = Settings(
    ModelConfig(dim=16, layers=4, attention_heads=2, ffn_dim=24, n_future=3),
    TrainConfig(
        steps=10, batch_size=16, accumulate=2, seq_len=16, lr=1e-2, warmup=2, far_rows=0.25, dtype="float32",
        compile="false", log_every=4, valid_every=5, valid_bytes=300, checkpoint_every=100, sample_bytes=0,
    ),
    DataConfig(valid_fraction=0.2),
)  # fmt: skip
CASES: dict[str, dict[str, Any]] = {
    f"{topology}, {optimizer}": {"model.topology": topology, "train.optimizer": optimizer}
    for topology, optimizer in zip(get_args(Topology), cycle(["adamw", "muon"]), strict=False)
}
CASES |= {
    "one head": {"model.n_future": 1},
    "joint": {"train.backward": "joint", "train.head_weights": "equal", "model.order_head": True},
    "growing rows": {"train.first_seq_len": 4, "train.grow_at": 0.5, "model.order_head": True},
    "repeating rows": {"train.repeat_rows": 0.4},
    "far heads that wait": {"train.far_from": 0.6, "model.topology": "parallel"},
    "for drafts": {"train.tv_from": 0.5, "model.topology": "parallel"},
    "frozen": {"train.freeze": "trunk", "model.topology": "parallel"},
    "transitions": {"model.transitions": True, "train.far_rows": 1.0},
}
FOUR: dict[str, dict[str, Any]] = {
    "four, deepseek": {"model.topology": "deepseek", "train.optimizer": "muon", "train.accumulate": 1},
    "four, replicated": {"train.far_rows": 0.5},
}
"""For four processes, which two far rows of a micro-batch of eight would not feed."""
OF_JOB = {"one": CASES | FOUR, "two": CASES, "four": FOUR, "last": {}}
RELAY = [("one", 3), ("two", 5), ("four", 9), ("last", 0)]
"""One run by several jobs in turn: each up to a step."""
TIMEOUT = 500


def run_cases(folder: Path, job: str) -> None:
    """The cases of a job, and its stretch of the relay."""
    torch.set_default_dtype(torch.float64)
    with joined() as world:
        for case, values in OF_JOB[job].items():
            first: dict[str, torch.Tensor] = {}
            record_gradients(first)
            run, init = folder / job / case, folder / "one" / "parallel, adamw"
            train(
                changed(BASE, **values), [str(folder / "corpus")], run,
                device="cpu", init=init if case == "frozen" else None, world=world,
            )  # fmt: skip
            if world.is_first:
                save_file(first, run / "gradients.partial")
        relay, stop = changed(BASE, **{"train.accumulate": 1}), dict(RELAY)[job]
        paths, run = [str(folder / "corpus")], folder / "relay"
        train(relay, paths, run, device="cpu", world=world, resume=job != "one", stop_after=stop)
        if job == "one":
            train(relay, paths, folder / "one" / "relay", device="cpu", world=world)


CLIP, STEP, MONOTONIC = Optimizers.clip, Trainer._step, time.monotonic


def record_gradients(first: dict[str, torch.Tensor]) -> None:
    """Keep those of the first step that is clipped from now on."""

    def clip(self: Optimizers, largest: float) -> torch.Tensor:
        if not first:
            named = [(name, parameter.grad) for name, parameter, _, _ in self.states()]
            first.update({name: gradient.clone() for name, gradient in named if gradient is not None})
        return CLIP(self, largest)

    Optimizers.clip = clip  # type: ignore[method-assign]


def command(folder: Path, job: str, *more: str, run: str = "run") -> Callable[[], None]:
    """`python -m bytemtp.train` on the corpus."""
    shape = [
        "--model.dim=16",
        "--model.layers=2",
        "--model.ffn_dim=24",
        "--model.n-future=2",
        "--train.steps=9",
        "--train.batch_size=4",
    ]
    rest = [
        "--train.dtype=float32",
        "--train.checkpoint_every=3",
        "--train.seq_len=16",
        "--train.warmup=2",
        "--train.log_every=1",
        "--train.sample-bytes=20",
        "--device=cpu",
    ]
    options = ["--preset=nano", "--train.far_rows=1", *shape, *rest, f"--out={folder / job / run}", *more]
    return lambda: main([str(folder / "corpus"), *options])


def before_step(rank: int, step: int, deed: Callable[[], object]) -> None:
    """Do it once, on one process, when so many steps are done."""
    done: list[int] = []

    def stepped(self: Trainer) -> None:
        if self.world.rank == rank and self.state.step == step and not done:
            done.append(step)
            deed()
        STEP(self)

    Trainer._step = stepped  # type: ignore[method-assign]


def fail(kind: type[Exception], message: str) -> None:
    raise kind(message)


OPTIONS = {
    "misspelt": ["--train.stepz=3"],
    "uneven": ["--train.batch_size=5"],
    "clock": ["--train.minutes=0.1"],
    "compiled": ["--train.compile=true"],  # for torchrun only: it takes long
    "compiled, sharded": ["--train.compile=true", "--train.parallel=fsdp"],
    "killed, sharded": ["--train.parallel=fsdp"],
}


def misfortune(folder: Path, job: str) -> None:
    """One process has trouble, or hears of it alone."""
    torch.set_default_dtype(torch.float64)
    match job:
        case "user error":
            before_step(1, 3, lambda: fail(UserError, "step 3 is one too many"))
        case "bug":
            before_step(1, 3, lambda: fail(ZeroDivisionError, "a bug"))
        case "killed" | "killed, sharded":
            if not is_restarted():
                before_step(1, 5, lambda: os.kill(os.getpid(), signal.SIGKILL))
        case "taken":
            (folder / job / "run").mkdir(parents=True, exist_ok=True)
            (folder / job / "run" / "letter.txt").write_text("dear")
        case "signal":
            before_step(1, 3, lambda: os.kill(os.getpid(), signal.SIGTERM))
        case "clock":
            seconds = count(step=0.1 if os.environ["RANK"] == "0" else 7.0)
            trainer.time.monotonic = lambda: float(next(seconds))  # type: ignore[attr-defined]
    command(folder, job, *OPTIONS.get(job, ()))()


MISFORTUNES = ("user error", "bug", "killed", "taken", "misspelt", "uneven", "signal", "clock")


def fork(folder: Path, job: str, size: int, work: Callable[[Path, str], None]) -> None:
    """Run a job of so many processes to its end, and write down how it ended."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    errors = folder / f"{job}.txt"
    pids = []
    for rank in range(size):
        pid = os.fork()
        if pid == 0:
            signal.alarm(TIMEOUT)
            os.dup2(os.open(errors, os.O_WRONLY | os.O_CREAT | os.O_APPEND), 2)
            if size > 1:
                torch.set_num_threads(1)  # as torchrun has it
                where = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
                os.environ |= where | {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(size)}
            os._exit(status_of(lambda: run_main(lambda: work(folder, job))))
        pids.append(pid)
    statuses = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]
    (folder / f"{job}.json").write_text(json.dumps({"statuses": statuses, "errors": errors.read_text()}))


def status_of(work: Callable[[], None]) -> int:
    try:
        work()
    except SystemExit as stop:
        return int(stop.code or 0)
    except BaseException:  # noqa: BLE001 - as the interpreter would show it
        traceback.print_exc()
        return 1
    return 0


def write_corpus(folder: Path) -> None:
    """80 documents of 10 to 70 bytes, some in each row."""
    folder.mkdir(parents=True)
    draw = random.Random(0)
    for i in range(80):
        words = draw.choices(["alpha ", "beta ", "gamma\n", "delta, ", "epsilon. "], k=draw.randint(2, 9))
        (folder / f"{i:02}.txt").write_text("".join(words))


if __name__ == "__main__":
    FOLDER = Path(sys.argv[1])
    if "LOCAL_RANK" in os.environ:
        run_main(lambda: misfortune(FOLDER, sys.argv[2]))
        sys.exit()
    write_corpus(FOLDER / "corpus")
    for (job, _), size in zip(RELAY, (1, 2, 4, 1), strict=True):
        fork(FOLDER, job, size, run_cases)
    for job in MISFORTUNES:
        fork(FOLDER, job, 2, misfortune)

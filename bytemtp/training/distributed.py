"""Several processes that `torchrun` starts: each learns from its share of each micro-batch.

    every process     its rows -> gradients -> their sum over the processes -> the same step
    the first alone   the run folder, the log, samples

So N processes take the very steps of one, whether each has all weights or a share (`bytemtp.training.sharding`).  What
ends a run (a signal, the clock) they agree on, so that none waits for one that has left; when one dies, the others
notice at their next meeting.  Gradients of what all have are added up by hand: PyTorch's DistributedDataParallel does
not survive several backward passes through shared parameters (`bytemtp.training.loss`).

Try:  torchrun --nproc-per-node 2 -m bytemtp.train PATH --out RUN
"""

import os
import platform
import re
import time
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext, redirect_stderr
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar, cast
from uuid import uuid4

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.rendezvous import rendezvous

from bytemtp.common.errors import UserError
from bytemtp.common.shards import is_sharded
from bytemtp.model.context_parallel import WHOLE, Part

T = TypeVar("T")
PATIENCE = timedelta(days=1)
"""The first process may count a large corpus while the others wait.  Whoever dies closes its connections at once."""
BUCKET = 2**24
"""Most gradients that are added up at a time, unless a single parameter has more: what is copied for it stays small."""


class LostProcess(UserError):
    """Another process has died, and had trouble of its own or was killed."""


@dataclass(frozen=True)
class World:
    """The processes of a job, and which of them this one is.  With one process nothing here does anything."""

    rank: int = 0
    size: int = 1
    context: int = 1
    """so many neighbours read the same rows, and share out their positions (`train.context_parallel`)"""

    @property
    def readers(self) -> int:
        """Processes, or groups of neighbours, that read rows of their own."""
        return self.size // self.context

    @property
    def reader(self) -> int:
        """Number of the one to which this process belongs."""
        return self.rank // self.context

    def part(self) -> Part:
        """Of each row that is read, what this process computes.  All must ask."""
        if self.context == 1:
            return WHOLE
        with _meeting(self):
            group, _ = dist.new_subgroups(self.context, timeout=PATIENCE)
        return Part(self.rank % self.context, self.context, group)

    def check_same_rows(self, rows: Tensor, part: Part) -> None:
        """UserError unless all that share out rows have read the same: they would attend to each other's others."""
        if part.size == 1:
            return
        number = zlib.crc32(rows.numpy().tobytes())
        largest, least = self._reduced(torch.tensor([number, -number]), dist.ReduceOp.MAX, part.group).tolist()
        if largest != -least:
            raise UserError(
                f"process {self.rank} has read other rows than those it shares rows out with; all of them must "
                "see the same files, and read them without errors"
            )

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    def share(self, function: Callable[[], T]) -> T:
        """What `function` says on the first process; on the others it is not called."""
        if self.size == 1:
            return function()
        box = [function() if self.is_first else None]
        with _meeting(self):
            dist.broadcast_object_list(box, device=torch.device("cpu"))
        return cast(T, box[0])

    def sum(self, x: Tensor) -> Tensor:
        """The sum over the processes, without gradient."""
        return x if self.size == 1 else self._reduced(x.detach().clone())

    def each(self, x: Tensor) -> list[Tensor]:
        """That of every process, in order; all have one shape."""
        if self.size == 1:
            return [x]
        found = [torch.empty_like(x) for _ in range(self.size)]
        with _meeting(self):
            dist.all_gather(found, x.contiguous())
        return found

    def largest(self, number: int) -> int:
        return number if self.size == 1 else int(self._reduced(torch.tensor(number), dist.ReduceOp.MAX))

    def sum_gradients(self, parameters: Iterable[Tensor]) -> None:
        """Replace gradients by their sums over the processes: the same parameters have one everywhere.

        Those of sharded parameters are summed as soon as they are there.
        """
        if self.size == 1:
            return
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        for bucket in buckets(gradient for gradient in gradients if not is_sharded(gradient)):
            flat = self._reduced(torch.cat([gradient.flatten() for gradient in bucket]))
            for gradient, part in zip(bucket, flat.split([x.numel() for x in bucket]), strict=True):
                gradient.copy_(part.view_as(gradient))

    def _reduced(
        self,
        x: Tensor,
        operation: dist.ReduceOp.RedOpType = dist.ReduceOp.SUM,
        group: dist.ProcessGroup | None = None,
    ) -> Tensor:
        """In place, over all processes or those of a group."""
        with _meeting(self):
            dist.all_reduce(x, operation, group)
        return x

    def check_device(self, device: torch.device) -> None:
        """UserError if two processes would share a CUDA device."""
        if self.size > 1 and device.type == "cuda" and device.index != _local_rank():
            raise UserError(
                f"process {self.rank} of {self.size} would run on {device}, which another one has; start no more "
                f"processes than there are cards ({torch.cuda.device_count()}), and name none of them in --device"
            )

    def check_agreed(self, what: str, number: int) -> None:
        """UserError unless it is the same on all processes."""
        if (other := self.largest(number)) != number:
            raise UserError(
                f"process {self.rank} finds {what} {number} and another one {other}; "
                "all of them must see the same files, so put --out on a disk that they share"
            )


ALONE = World()


def buckets(gradients: Iterable[Tensor]) -> Iterator[list[Tensor]]:
    """In order, BUCKET numbers or a single gradient at a time."""
    bucket: list[Tensor] = []
    for gradient in gradients:
        if bucket and sum(x.numel() for x in bucket) + gradient.numel() > BUCKET:
            yield bucket
            bucket = []
        bucket.append(gradient)
    if bucket:
        yield bucket


@contextmanager
def joined() -> Iterator[World]:
    """Inside, the processes of this torchrun job can meet; without torchrun, or with one process, nothing is set up.

    The first process alone writes to standard error.  Of an error that ends the job only the process that had it first
    says anything: the others, which then lose it, exit with status 2.  UserError if they cannot meet.
    """
    world = _world()
    if world.size == 1:
        yield world
        return
    with _meeting(world):
        store, _, _ = next(rendezvous("env://", timeout=PATIENCE))
        store = fresh(store, world)
    try:
        with nullcontext() if world.is_first else _silence():
            _connect(world, store)
            yield world
    except Exception as error:
        told = _lost(world, error) if _is_of_transport(error) else error
        if not _is_first(store, told):
            raise SystemExit(2) from None
        if told is error:
            raise
        raise told from None
    except SystemExit:  # a stop that all have agreed on
        dist.destroy_process_group()
        raise
    dist.destroy_process_group()


def fresh(store: Any, world: World) -> Any:
    """A part of the store that no earlier start of this job has written to, the same for all processes.

    torchrun's store outlives a restart (`--max-restarts`), with the addresses of the dead.  So each process asks by a
    word of its own, and the first one answers all questions, also those of the dead, until all living ones are there.
    """
    start = _answer(store, world) if world.is_first else _ask(store, world)
    return dist.PrefixStore(start, store)  # type: ignore[attr-defined]


def _ask(store: Any, world: World) -> str:
    question = uuid4().hex
    store.set(f"question of {world.rank}", question)
    start: str = store.get(f"answer to {question}").decode()  # waits
    store.set(f"{world.rank} is at {start}", "")
    return start


def _answer(store: Any, world: World) -> str:
    start, others = f"start {uuid4().hex}", range(1, world.size)
    while not all(store.check([f"{rank} is at {start}"]) for rank in others):
        for rank in others:
            if store.check([f"question of {rank}"]):
                store.set(f"answer to {store.get(f'question of {rank}').decode()}", start)
        time.sleep(0.01)
    return start


def job() -> str:
    """Name of the torchrun job that this process belongs to, the same after a restart; empty without torchrun."""
    name = os.environ.get("TORCHELASTIC_RUN_ID")
    return f"{name} of process {os.getppid()} on {platform.node()}" if name else ""


def is_restarted() -> bool:
    """Whether torchrun has started this job's processes before (`--max-restarts`)."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0


def _world() -> World:
    if not {"RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"} <= os.environ.keys():
        return ALONE
    return World(int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]))


def _local_rank() -> int:
    return int(os.environ["LOCAL_RANK"])


def _connect(world: World, store: Any) -> None:
    """By gloo on the host, also with CUDA: decisions then wait for no device.

    store: keys and values that all processes see (`torch.distributed.Store`).
    """
    has_cuda = torch.cuda.is_available()
    if has_cuda:
        torch.cuda.set_device(_local_rank() % torch.cuda.device_count())
    backend = "cpu:gloo,cuda:nccl" if has_cuda else "gloo"
    with _meeting(world):
        dist.init_process_group(backend, store=store, rank=world.rank, world_size=world.size, timeout=PATIENCE)


@contextmanager
def _meeting(world: World) -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:  # as are all of torch.distributed's
        raise _lost(world, error) from None


def _lost(world: World, error: Exception) -> LostProcess:
    return LostProcess(
        f"process {world.rank} of {world.size} has lost another one: {_reason(error)}; "
        "find out why that one died, then go on with --resume"
    )


def _is_of_transport(error: Exception) -> bool:
    """Whether a connection failed inside of PyTorch, where sharded weights are gathered and their gradients summed."""
    return isinstance(error, dist.DistError) or bool(re.match(r"\[\S*gloo\S*\] ", str(error)))


def _reason(error: Exception) -> str:
    """The first sentence, without the place in the source."""
    return re.sub(r"^\[\S+\] ", "", str(error).strip().partition("\n")[0]).partition(". ")[0]


def _is_first(store: Any, error: Exception) -> bool:
    """Whether this process is the first of all to have an error."""
    try:
        return bool(store.add("failed", 1) == 1)
    except RuntimeError:  # the store has died with its process, the first one where there is no torchrun
        return not isinstance(error, LostProcess)


@contextmanager
def _silence() -> Iterator[None]:
    with open(os.devnull, "w", encoding="utf-8") as nowhere, redirect_stderr(nowhere):
        yield

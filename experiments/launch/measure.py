"""What a training step holds, sends and takes, on this machine, beside what `python -m bytemtp.plan` foresees.

    torchrun --nproc-per-node 4 -m experiments.launch.measure [--preset 300m] [--SETTING VALUE ...]

A line for each way in which these processes can train: with all weights each (ddp), sharing one copy (fsdp), and
sharing several (fsdp/K: K processes a copy); with `--train.context-parallel K` rows are shared out beside.  All ways
take the same six steps from the same weights on the same bytes, so the losses must agree.  Numbers are those of the
first process: bytes sent in the second step, counted at every collective (`Sent`); memory as the median of the three
steps after it, since when buffers are freed depends on the other processes; the time of the last step.  Memory on CUDA
is what the allocator had given out at the most; on a CPU, weights and moments and what PyTorch's allocator gave the
step beside them.
"""

import argparse
import random
import sys
import tempfile
import time
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import torch
import torch.distributed as dist
import tyro
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode

from bytemtp.common.cli import parse, run_main
from bytemtp.common.presets import PRESETS, preset
from bytemtp.common.runtime import Choice, pick_device, pick_dtype
from bytemtp.common.settings import DataConfig, ModelConfig, Settings, TrainConfig, changed
from bytemtp.common.shards import local
from bytemtp.training.auto import choose
from bytemtp.training.batches import grouped
from bytemtp.training.cost import memory
from bytemtp.training.distributed import World, joined
from bytemtp.training.sharding import build
from bytemtp.training.traffic import traffic
from bytemtp.training.trainer import Trainer

SMALL = Settings(
    ModelConfig(dim=128, layers=10, attention_heads=2, ffn_dim=352, n_future=2, topology="parallel"),
    TrainConfig(
        batch_size=8, accumulate=2, seq_len=128, far_rows=1.0, dtype="float32", compile="false", sample_bytes=0,
    ),
    DataConfig(valid_fraction=0.0),
)  # fmt: skip
"""Takes a second on a core; in so small a model the weights still weigh as much as what a step makes of them."""


class Sent(TorchDispatchMode):
    """Bytes that this process sends in collectives inside, if they go by rings (`bytemtp.training.traffic`)."""

    total = 0.0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if any(kind.__name__ == "DTensor" for kind in types):
            return NotImplemented  # comes again, with what this process has of it
        result = function(*args, **(kwargs or {}))
        name = function._schema.name
        if name.startswith(("c10d::", "_c10d_functional::", "_dtensor::")):
            self.total += sent_by(name, args, result)
        return result


def sent_by(name: str, args: Any, result: Any) -> float:
    """Of one call.  KeyError for a collective that nobody has thought of."""
    match name:
        case "c10d::allreduce_":
            size = dist.ProcessGroup.unbox(args[1]).size()
            return sum(2 * bytes_of(x) * (size - 1) / size for x in args[0])
        case "c10d::_allgather_base_":
            return bytes_of(args[0]) - bytes_of(args[1])
        case "c10d::_reduce_scatter_base_":
            return bytes_of(args[1]) - bytes_of(args[0])
        case "_c10d_functional::all_gather_into_tensor":
            return bytes_of(result) - bytes_of(args[0])
        case "c10d::allgather_":
            return sum(map(bytes_of, args[0][0])) - bytes_of(args[1][0])
        case "c10d::alltoall_base_":
            size = dist.ProcessGroup.unbox(args[2]).size()
            return bytes_of(args[1]) * (size - 1) / size
        case "_c10d_functional::wait_tensor" | "_c10d_functional::_wrap_tensor_autograd" | "c10d::broadcast_":
            return 0.0
    raise KeyError(f"{name} is no collective that a step is known to use")


def bytes_of(x: torch.Tensor) -> int:
    return x.numel() * x.itemsize


@dataclass(frozen=True)
class Line:
    """A way to train: foreseen and measured."""

    way: str
    held: tuple[float, float]
    """bytes of memory, foreseen and measured"""
    sent: tuple[float, float]
    """bytes of a step, foreseen and measured"""
    seconds: float
    loss: float

    def __str__(self) -> str:
        held, sent = (f"{x / 1e6:11,.2f}{y / 1e6:11,.2f}" for x, y in (self.held, self.sent))
        return f"{self.way:8}{held}{sent}{self.seconds:10.3f}{self.loss:10.5f}"


HEADER = f"{'':8}{'MB held':>11}{'measured':>11}{'MB sent':>11}{'measured':>11}{'s a step':>10}{'loss':>10}"
FIXED = {"data.valid_fraction": 0.0, "data.sweeps": 1, "train.minutes": 0.0, "train.far_from": 0.0}
"""Neither validated nor by the clock, and all heads learn."""


@dataclass(frozen=True)
class Command:
    """Measure memory, traffic and time of a step by the processes of this torchrun job."""

    preset: Annotated[str, tyro.conf.arg(metavar="{" + ",".join(PRESETS) + "}")] = ""
    """settings to start from; a small model for CPUs unless given"""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N"""
    settings: Annotated[tyro.conf.FlagConversionOff[Settings], tyro.conf.arg(name="")] = SMALL

    def main(self, world: World) -> None:
        place = pick_device(self.device)
        world.check_device(place.value)
        world = grouped(self.settings, world)
        lines = [measured(self.settings, way, place, world) for way in ways(world.size)]
        if world.is_first:
            print("\n".join([HEADER, *map(str, lines)]))


def ways(processes: int) -> list[tuple[str, int]]:
    """`train.parallel` and `train.shards`."""
    shared = [("fsdp", k) for k in range(processes - 1, 1, -1) if processes % k == 0]
    return [("ddp", 0), *([("fsdp", 0)] if processes > 1 else []), *shared]


def measured(settings: Settings, way: tuple[str, int], place: Choice, world: World) -> Line:
    parallel, shards = way
    sharded = parallel == "fsdp"
    own = changed(settings, **FIXED, **{"train.parallel": parallel, "train.shards": shards})
    dtype = pick_dtype(own.train.dtype, place.value).value
    model = build(own, None, place.value, sharded=sharded)
    own = choose(own, model, place)
    with tempfile.TemporaryDirectory() as folder:
        corpus = Path(folder) / "corpus"
        corpus.write_bytes(random.Random(0).randbytes(5 * own.train.batch_size * own.train.seq_len))
        with Trainer(own, [str(corpus)], Path(folder), model, None, world) as trainer:
            trainer._step()  # makes the optimizer's state
            with Sent() as sent:
                trainer._step()
            held = median(peak(trainer) for _ in range(3))
            began = time.perf_counter()
            trainer._step()
            trainer._catch_up()
            seconds = time.perf_counter() - began
            loss = trainer._total(trainer.unlogged).mean
    return Line(
        f"{parallel}/{shards}" if shards else parallel,
        (memory(own, dtype, world.size, sharded=sharded).total, held),
        (traffic(own, dtype, world.size, sharded=sharded).total, sent.total),
        seconds,
        loss,
    )


def peak(trainer: Trainer) -> int:
    """Bytes held at the most in a step."""
    device = trainer.model.device
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        trainer._step()
        return torch.cuda.max_memory_allocated(device)
    kept = [*trainer.model.parameters()]
    kept += [state[key] for _, _, state, keys in trainer.optimizer.states() for key in keys]
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as found:
        trainer._step()
    return sum(bytes_of(local(x)) for x in kept) + most_held(found)


def most_held(found: profile) -> int:
    """Bytes that PyTorch's allocator has given out at the most, beside those from before."""
    assert found.profiler is not None
    assert found.profiler.kineto_results is not None
    events = [event for event in found.profiler.kineto_results.events() if event.name() == "[memory]"]
    changes = [event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())]
    return max(accumulate(changes))


def main() -> None:
    words = sys.argv[1:]
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    first.add_argument("--preset", nargs="?")
    asked, _ = first.parse_known_args(words)
    base = preset(asked.preset) if asked.preset else SMALL
    with joined() as world:
        parse(Command, "python -m experiments.launch.measure", words, Command(settings=base)).main(world)


if __name__ == "__main__":
    run_main(main)

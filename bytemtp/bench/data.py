"""`bench data`: how fast and how large the data stream is, on Linux.

The rate at which a .zst corpus becomes batches on one core, beside the rate at which the zstandard library alone
decompresses it into a buffer of 1 MiB, in turn; and the memory that reading takes, by size of the corpus.
"""

import os
import statistics
import time
from collections.abc import Callable
from functools import partial
from itertools import cycle
from pathlib import Path
from typing import Any

import zstandard

from bytemtp.bench.shapes import Shape
from bytemtp.bench.turns import machine, markdown_table, measure
from bytemtp.common.files import writing
from bytemtp.data.stream import stream
from bytemtp.training.progress import status_bytes

RAW_READ_BYTES = 1 << 20
SHAPES = {"16x512": (16, 512), "64x1024": (64, 1024), "32x8192": (32, 8192)}
"""batch_size x seq_len"""
MEMORY_SHAPE = "64x1024"
MEGABYTE = 1_000_000


def bench_data(sizes_mb: list[int], directory: Path, rounds: int) -> dict[str, Any]:
    """Measure; corpora of the given sizes are written to `directory` and removed again.

    The result has `rates_mb_per_s` on the first size (median of the rounds; `raw` is the library alone, the others are
    batch shape and prefetch), `ratio_to_raw` for each of these, and `peak_memory_mb` by size, imports not counted.
    """
    with writing(directory):
        directory.mkdir(parents=True, exist_ok=True)
    rates: dict[str, float] = {}
    memory = {}
    for size_mb in sizes_mb:
        path = directory / f"bench-{size_mb}.zst"
        try:
            write_corpus(path, size_mb)
            rates = rates or measure("data-rates", Shape(), {"path": str(path), "rounds": rounds})
            memory[str(size_mb)] = round(peak_memory(path) / MEGABYTE, 1)
        finally:
            path.unlink(missing_ok=True)
    ratios = {name: round(rate / rates["raw"], 3) for name, rate in rates.items() if name != "raw"}
    what = {"bench": "data", "machine": machine(), "cores": 1, "rounds": rounds, "rates_size_mb": sizes_mb[0]}
    return what | {"rates_mb_per_s": rates, "ratio_to_raw": ratios, "peak_memory_mb": memory}


def print_data(report: dict[str, Any]) -> None:
    rates, ratios = report["rates_mb_per_s"], report["ratio_to_raw"]
    rows = [[name, f"{rate:,.0f}", f"{ratios.get(name, 1):.2f}x"] for name, rate in rates.items()]
    print(markdown_table(rows, [f"one core, {report['rates_size_mb']} MB", "MB/s", "of raw"]), end="\n\n")
    memory = [[size, mb] for size, mb in report["peak_memory_mb"].items()]
    print(markdown_table(memory, ["corpus, MB", "memory added, MB"]))


def write_corpus(path: Path, size_mb: int) -> Path:
    """A .zst of real text, the standard library's sources over and over; returns its path.

    UserError if it cannot be written.
    """
    left = size_mb * MEGABYTE
    compressor = zstandard.ZstdCompressor(level=3, write_checksum=True)
    sources = [source.read_bytes() for source in Shape().source_files()]
    with writing(path), path.open("wb") as file, compressor.stream_writer(file) as writer:
        for text in cycle(sources):
            writer.write(text[:left])
            left -= min(left, len(text))
            if not left:
                break
    return path


def peak_memory(path: Path) -> int:
    """Bytes of memory that reading a corpus adds to a process, at most."""
    return int(measure("data-memory", Shape(), {"path": str(path)})["bytes"])


def measure_rates(shape: Shape, *, path: str, rounds: int) -> dict[str, float]:
    """MB/s of each reader, in a process of its own (worker.py)."""
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    readers: dict[str, Callable[[], int]] = {"raw": partial(_read_raw, path)}
    for name in SHAPES:
        for prefetch in (0, 2):
            readers[f"{name} prefetch {prefetch}"] = partial(_read_batches, path, name, prefetch)
    rates: dict[str, list[float]] = {name: [] for name in readers}
    for turn in range(1 + rounds):
        for name, read in readers.items():
            begin = time.perf_counter()
            size = read()
            if turn:  # the first turn pays for memory and caches that the others find
                rates[name].append(size / (time.perf_counter() - begin) / MEGABYTE)
    return {name: round(statistics.median(values), 1) for name, values in rates.items()}


def _read_raw(path: str) -> int:
    buffer, total = bytearray(RAW_READ_BYTES), 0
    with open(path, "rb") as file:
        reader = zstandard.ZstdDecompressor().stream_reader(file)
        while count := reader.readinto(buffer):
            total += count
    return total


def _read_batches(path: str, name: str, prefetch: int) -> int:
    batch_size, seq_len = SHAPES[name]
    with stream(path, seq_len, batch_size, prefetch=prefetch) as batches:
        return sum(len(batch.octets) for batch in batches) * seq_len


def measure_memory(shape: Shape, *, path: str) -> dict[str, float]:
    """Bytes added by reading, in a process of its own (worker.py)."""
    Path("/proc/self/clear_refs").write_text("5")  # the peak so far, that of the imports, is forgotten
    before = status_bytes("VmRSS")
    _read_batches(path, MEMORY_SHAPE, prefetch=2)
    return {"bytes": status_bytes("VmHWM") - before}

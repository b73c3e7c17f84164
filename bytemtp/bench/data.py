"""`bench data`: how fast and how large the data stream is, against the zstandard library alone.

On Linux, each figure in a process of its own: the rate at which a .zst corpus becomes batches on one core, next to the
rate at which the library alone decompresses it into a buffer of 1 MiB, in turn; and the memory that reading takes, by
size of the corpus.
"""

import json
import os
import statistics
import subprocess
import sys
import sysconfig
import time
from collections.abc import Callable, Iterator
from functools import partial
from itertools import cycle
from pathlib import Path
from typing import Any

import zstandard

from bytemtp.bench.turns import machine, markdown_table
from bytemtp.data.stream import stream

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
    result: dict[str, Any] = {"bench": "data", "machine": machine(), "cores": 1, "rounds": rounds, "peak_memory_mb": {}}
    directory.mkdir(parents=True, exist_ok=True)
    for size_mb in sizes_mb:
        path = write_corpus(directory / f"bench-{size_mb}.zst", size_mb)
        if size_mb == sizes_mb[0]:
            result["rates_size_mb"] = size_mb
            result["rates_mb_per_s"] = _in_new_process("rates", path, rounds)
        result["peak_memory_mb"][str(size_mb)] = round(peak_memory(path) / MEGABYTE, 1)
        path.unlink()
    rates = result["rates_mb_per_s"]
    result["ratio_to_raw"] = {name: round(rate / rates["raw"], 3) for name, rate in rates.items() if name != "raw"}
    return result


def print_data(report: dict[str, Any]) -> None:
    rates, ratios = report["rates_mb_per_s"], report["ratio_to_raw"]
    rows = [[name, f"{rate:,.0f}", f"{ratios.get(name, 1):.2f}x"] for name, rate in rates.items()]
    print(markdown_table(rows, [f"one core, {report['rates_size_mb']} MB", "MB/s", "of raw"]), end="\n\n")
    print(
        markdown_table(
            [[size, mb] for size, mb in report["peak_memory_mb"].items()], ["corpus, MB", "memory added, MB"]
        )
    )


def write_corpus(path: Path, size_mb: int) -> Path:
    """A .zst of real text, the standard library's sources over and over; returns its path."""
    left = size_mb * MEGABYTE
    compressor = zstandard.ZstdCompressor(level=3, write_checksum=True)
    with path.open("wb") as file, compressor.stream_writer(file) as writer:
        for text in cycle(_library_sources()):
            writer.write(text[:left])
            left -= min(left, len(text))
            if not left:
                break
    return path


def peak_memory(path: Path) -> int:
    """Bytes of memory that reading a corpus adds to a process, at most."""
    return int(_in_new_process("memory", path)["bytes"])


def _library_sources() -> list[bytes]:
    folder = Path(sysconfig.get_paths()["stdlib"])
    return [path.read_bytes() for path in sorted(folder.glob("*.py"))]


def _in_new_process(task: str, path: Path, *arguments: int) -> dict[str, Any]:
    command = [sys.executable, "-m", __name__, task, str(path), *map(str, arguments)]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True)
    measured: dict[str, Any] = json.loads(done.stdout)
    return measured


def _measure_rates(path: Path, rounds: int) -> dict[str, float]:
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    tasks: dict[str, Callable[[], int]] = {"raw": partial(_read_raw, path)}
    for shape in SHAPES:
        for prefetch in (0, 2):
            tasks[f"{shape} prefetch {prefetch}"] = partial(_read_batches, path, shape, prefetch)
    rates: dict[str, list[float]] = {name: [] for name in tasks}
    for task in tasks.values():
        task()  # untimed: the first to run, the library alone, would pay for memory and caches that the others find
    for _ in range(rounds):
        for name, task in tasks.items():
            begin = time.perf_counter()
            size = task()
            rates[name].append(size / (time.perf_counter() - begin) / MEGABYTE)
    return {name: round(statistics.median(values), 1) for name, values in rates.items()}


def _read_raw(path: Path) -> int:
    buffer = bytearray(RAW_READ_BYTES)
    total = 0
    with path.open("rb") as file:
        reader = zstandard.ZstdDecompressor().stream_reader(file)
        while count := reader.readinto(buffer):
            total += count
    return total


def _read_batches(path: Path, shape: str, prefetch: int) -> int:
    batch_size, seq_len = SHAPES[shape]
    with stream(path, seq_len, batch_size, prefetch=prefetch) as batches:
        return sum(len(batch.octets) for batch in batches) * seq_len


def _measure_memory(path: Path) -> dict[str, float]:
    Path("/proc/self/clear_refs").write_text("5")  # the peak so far, that of the imports, is forgotten
    before = _status_bytes("VmRSS")
    _read_batches(path, MEMORY_SHAPE, prefetch=2)
    return {"bytes": _status_bytes("VmHWM") - before}


def _status_bytes(field: str) -> int:
    """A field of /proc/self/status, which counts in KiB."""
    lines: Iterator[str] = iter(Path("/proc/self/status").read_text().splitlines())
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith(f"{field}:"))


if __name__ == "__main__":
    task, path, *rest = sys.argv[1:]
    measured = _measure_rates(Path(path), int(rest[0])) if task == "rates" else _measure_memory(Path(path))
    print(json.dumps(measured))

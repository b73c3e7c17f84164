"""Experiments that train on the Python library: how a cell is scored, and the table of what came out.

Scored are bits per byte of every head on held-out files, and, for models with several heads, what drafting brings on
texts that begin as these files do: bytes a pass, and speed over plain decoding by processor time, which other work on
the machine disturbs little.
"""

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import bytemtp
from bytemtp.bench.quality import bits_per_byte
from bytemtp.bench.turns import markdown_table
from bytemtp.evaluation.bits_per_byte import beginnings
from bytemtp.model.checkpoint import settings_of
from experiments.grid import Cell, Line, train
from experiments.tables import by_cell, mean_and_sd, paired

PROMPTS, PROMPT_BYTES, WRITTEN = 16, 128, 128
"""Texts that are continued, their length, and how many bytes each gets."""
TEMPERATURES = (0.0, 0.8)
BASE = "n=1"
"""The cell that the others are compared with."""
SHOWN_HEADS = (2, 4, 8)


@dataclass(frozen=True)
class Written:
    """Bytes, and what they took."""

    bytes: int
    passes: int
    seconds: float
    """of the processor, the time until a text's first byte included"""


def score(cell: Cell) -> dict[str, Any]:
    """Train and score; files are the options `train` and `heldout` of the cell's preset."""
    return train(cell, cell.options["train"]) | scores(cell)


def scores(cell: Cell) -> dict[str, Any]:
    """Of a cell that is trained."""
    bits = bits_per_byte(cell.folder, [cell.options["heldout"]])
    return {name: bits[name] for name in ("bpb", "bpb_per_head")} | {"drafting": drafting(cell)}


def drafting(cell: Cell) -> list[dict[str, float]]:
    """By temperature: bytes a pass with all heads, and speed over plain decoding.  Empty for one head."""
    model = bytemtp.load(cell.folder)
    if model.config.n_future == 1:
        return []
    data = settings_of(cell.folder).data
    prompts = beginnings([cell.options["heldout"]], PROMPTS, PROMPT_BYTES, data)
    result = []
    for temperature in TEMPERATURES:
        plain, drafted = (write(model, prompts, mode, temperature) for mode in ("ar", "speculative"))
        speed = (drafted.bytes / drafted.seconds) / (plain.bytes / plain.seconds)
        result.append({"bytes_per_pass": drafted.bytes / drafted.passes, "speed_up": speed})
    return result


def write(model: bytemtp.ByteMTP, prompts: Sequence[bytes], mode: str, temperature: float) -> Written:
    """Continue the prompts one after the other."""
    options = {"mode": mode, "temperature": temperature, "heads": model.config.n_future if mode != "ar" else 0}
    begun = time.process_time()
    texts = [bytemtp.generate(model, prompt, WRITTEN, seed=i, **options) for i, prompt in enumerate(prompts)]
    seconds = time.process_time() - begun
    return Written(sum(text.stats["bytes"] for text in texts), sum(text.stats["forwards"] for text in texts), seconds)


def table(lines: Sequence[Line]) -> str:
    """Bits per byte, each cell against one head, and what drafting brings."""
    cells = by_cell(lines)
    header = [
        "cell",
        "seeds",
        "bpb, head 1",
        f"minus {BASE}",
        "p",
        *(f"head {i}" for i in SHOWN_HEADS),
        *(f"bytes a pass, T = {t:g}" for t in TEMPERATURES),
        *(f"speed-up, T = {t:g}" for t in TEMPERATURES),
        "minutes",
    ]
    return markdown_table([row(name, of_cell, cells.get(BASE, [])) for name, of_cell in cells.items()], header)


def row(name: str, lines: Sequence[Line], base: Sequence[Line]) -> list[str]:
    against = ["", ""] if name == BASE else paired(lines, base, "bpb", ".4f")[1:]
    return [
        name,
        str(len(lines)),
        mean_and_sd([line["bpb"] for line in lines], ".4f"),
        *against,
        *(mean_of_head(lines, i) for i in SHOWN_HEADS),
        *(drafted(lines, i, "bytes_per_pass") for i in range(len(TEMPERATURES))),
        *(drafted(lines, i, "speed_up") for i in range(len(TEMPERATURES))),
        mean_and_sd([line["minutes"] for line in lines], ".1f"),
    ]


def mean_of_head(lines: Sequence[Line], head: int) -> str:
    """Bits per byte; empty for a model without it."""
    bits = [line["bpb_per_head"][head - 1] for line in lines if len(line["bpb_per_head"]) >= head]
    return f"{statistics.mean(bits):.3f}" if bits else ""


def drafted(lines: Sequence[Line], temperature: int, figure: str) -> str:
    values = [line["drafting"][temperature][figure] for line in lines if line["drafting"]]
    return mean_and_sd(values, ".2f") if values else ""

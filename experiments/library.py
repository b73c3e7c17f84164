"""Experiments that train on the Python library: how a cell is scored, and the table of what came out.

Scored are bits per byte of every head on held-out files, and, for models with several heads, what drafting brings on
texts that begin as these files do: bytes a pass, and speed over plain decoding by the thread's processor time, which
other work on the machine disturbs little.
"""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import bytemtp
from bytemtp.bench.quality import bits_per_byte
from bytemtp.common.runtime import pick_device
from bytemtp.evaluation.bits_per_byte import beginnings
from bytemtp.model.checkpoint import settings_of
from experiments.grid import Cell, Experiment, Line, cells_of, train
from experiments.tables import by_cell, mean_and_sd, paired, table_of_used

PROMPTS, PROMPT_BYTES, WRITTEN = 16, 128, 128
"""Texts that are continued, unless a preset has other `texts`, their length, and how many bytes each gets."""
TEMPERATURES = (0.0, 0.8)
BYTES_A_PASS = [f"bytes a pass, T = {t:g}" for t in TEMPERATURES]
BASE = "n=1"
"""The cell that the others are compared with."""
SHOWN_HEADS = (2, 4, 8)
Columns = Mapping[str, Callable[[Sequence[Line]], str]]
"""Columns of a table that an experiment adds: their headers, and the text for the lines of a cell."""


@dataclass(frozen=True)
class Written:
    """Bytes, and what they took."""

    bytes: int
    passes: int
    seconds: float
    """of this thread on the processor (on CUDA of the clock), the time until a text's first byte included"""
    accepted: float
    """share of the passes with drafts whose first draft was accepted; 0 without drafts"""


def score(cell: Cell) -> dict[str, Any]:
    """Train and score; files are the options `train` and `heldout` of the cell's preset."""
    return train(cell, cell.options["train"]) | scores(cell)


def train_behind(experiment: Experiment, cell: Cell) -> dict[str, Any]:
    """Train; the setting sweep.init names a cell from whose weights, of the same seed, the run starts."""
    files = cell.options["train"]
    if "sweep.init" not in cell.settings:
        return train(cell, files)
    (first,) = cells_of(experiment, cell.preset, [cell.seed], [cell.settings["sweep.init"]])
    before, after = train(first, files), train(cell, files, init=first.folder)
    return after | {name: before[name] + after[name] for name in ("steps", "bytes_seen", "minutes")}


def scores(cell: Cell) -> dict[str, Any]:
    """Of a cell that is trained."""
    bits = bits_per_byte(cell.folder, [cell.options["heldout"]])
    data = settings_of(cell.folder).data
    prompts = beginnings([cell.options["heldout"]], cell.options.get("texts", PROMPTS), PROMPT_BYTES, data)
    decoded = drafting(bytemtp.load(cell.folder, pick_device().value), prompts)
    return {name: bits[name] for name in ("bpb", "bpb_per_head")} | {"drafting": decoded}


def drafting(model: bytemtp.ByteMTP, prompts: Sequence[bytes]) -> list[dict[str, float]]:
    """By temperature: what drafting with all heads brings behind these prompts.  Empty for one head."""
    if model.config.n_future == 1:
        return []
    result = []
    for temperature in TEMPERATURES:
        plain, drafted = (write(model, prompts, mode, temperature) for mode in ("ar", "speculative"))
        speed, slow = (one.bytes / one.seconds for one in (drafted, plain))
        of_passes = {"bytes_per_pass": drafted.bytes / drafted.passes, "second_byte": drafted.accepted}
        result.append(of_passes | {"speed_up": speed / slow, "bytes_per_s": speed})
    return result


def write(model: bytemtp.ByteMTP, prompts: Sequence[bytes], mode: str, temperature: float) -> Written:
    """Continue the prompts one after the other."""
    options = {"mode": mode, "temperature": temperature, "heads": model.config.n_future if mode != "ar" else 0}
    clock = time.perf_counter if model.device.type == "cuda" else time.thread_time  # which stops while a thread waits
    begun = clock()
    texts = [bytemtp.generate(model, prompt, WRITTEN, seed=i, **options) for i, prompt in enumerate(prompts)]
    seconds = clock() - begun
    stats = [text.stats for text in texts]
    size, passes, drafted = (sum(one[name] for one in stats) for name in ("bytes", "forwards", "num_spec_steps"))
    rejected = sum(one["acceptance_histogram"][0] for one in stats)
    return Written(size, passes, seconds, (drafted - rejected) / max(drafted, 1))


def table(lines: Sequence[Line], columns: Columns | None = None) -> str:
    """Bits per byte, each cell against one head, and what drafting brings; columns that would be empty are left out."""
    cells, columns = by_cell(lines), columns or {}
    header = [
        "cell",
        "seeds",
        *columns,
        "bpb, head 1",
        f"minus {BASE}",
        "p",
        *(f"head {i}" for i in SHOWN_HEADS),
        *BYTES_A_PASS,
        *(f"speed-up, T = {t:g}" for t in TEMPERATURES),
        "minutes",
    ]
    rows = [row(name, of_cell, cells.get(BASE, []), columns) for name, of_cell in cells.items()]
    return table_of_used(rows, header)


def row(name: str, lines: Sequence[Line], base: Sequence[Line], columns: Columns) -> list[str]:
    against = ["", ""] if name == BASE else paired(lines, base, "bpb", ".4f")[1:]
    return [
        name,
        str(len(lines)),
        *(text_of(lines) for text_of in columns.values()),
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


def drafted(lines: Sequence[Line], temperature: int, figure: str, form: str = ".2f") -> str:
    """`temperature`: its place in TEMPERATURES.  Empty for one head, and where nothing was drafted."""
    values = [line["drafting"][temperature][figure] for line in lines if line.get("drafting")]
    return mean_and_sd(values, form) if values else ""

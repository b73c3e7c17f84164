"""A picture of one run, or of several for comparison, and the same numbers as a table; both from RUN/metrics.jsonl.

Three panels:  bits per byte while training (lines: training, averaged; dots: validation), bits per byte by head at the
end, bytes a second.  One run shows all its heads; several show the head that all have, the first.

Try:  python -m bytemtp.report runs/demo
"""

import json
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import cycle, product
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from bytemtp.common.errors import UserError
from bytemtp.common.runtime import in_a_row
from bytemtp.reports.figures import COLOURS, describe, literal

SMOOTH_LINES = 15
"""A point of a training curve is the mean of this many lines of metrics.jsonl around it, at most."""
RUN_STYLES = tuple(product(("-", "--", ":"), COLOURS))
"""Dashes and colour of each run."""
HEAD_COLOURS = colormaps["viridis"]
LABELLED_HEADS = 8
"""With more heads than that, a colour bar takes the place of the legend."""


@dataclass(frozen=True)
class Curve:
    """Lines of one split, in order.  Heads without a value have nan."""

    bytes_seen: Float[np.ndarray, " line"]
    bpb: Float[np.ndarray, "line n"]
    """bits per byte by head"""
    bytes_per_s: Float[np.ndarray, " line"]
    minutes: Float[np.ndarray, " line"]
    steps: Float[np.ndarray, " line"]

    def __len__(self) -> int:
        return len(self.bytes_seen)


@dataclass(frozen=True)
class History:
    """What metrics.jsonl tells about a run."""

    name: str
    train: Curve
    valid: Curve

    @property
    def last(self) -> Curve:
        """The curve whose end is the run's result: validation if there was any."""
        return self.valid if len(self.valid) else self.train

    @property
    def heads(self) -> int:
        return self.last.bpb.shape[1]


def read_history(run: Path) -> History:
    """UserError if `run` has no metrics.jsonl, or one without any line to draw."""
    path = run / "metrics.jsonl"
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}; give the folder of a run") from error
    whole = data.split(b"\n")[:-1]  # a last line may still be being written
    records = [_record(line, path, number) for number, line in enumerate(whole, 1)]
    train, valid = (_curve([r for r in records if r["split"] == split], path) for split in ("train", "valid"))
    if len(train) == 0:
        raise UserError(f"{path} holds no training line yet; wait for the run's first train.log_every steps")
    return History(str(run), train, valid)


def run_table(histories: Sequence[History]) -> str:
    """One row a run: where it ended."""
    header = ("run", "steps", "MB seen", "minutes", "kB/s", "split", "bpb by head")
    rows = [header, *map(_row, histories)]
    widths = [max(len(row[i]) for row in rows) for i in range(len(header) - 1)]
    lines = []
    for name, *numbers, bits in rows:
        cells = [name.ljust(widths[0]), *(x.rjust(width) for x, width in zip(numbers, widths[1:], strict=True)), bits]
        lines.append("  ".join(cells))
    return "\n".join(lines)


def plot_runs(histories: Sequence[History]) -> Figure:
    figure = Figure(figsize=(12, 4), dpi=150, layout=ConstrainedLayoutEngine(w_pad=0.12))
    curves, by_head, speed = figure.subplots(1, 3, width_ratios=(1.4, 1, 1))
    if len(histories) == 1:
        figure.suptitle(literal(histories[0].name), fontsize=11)
        _draw_heads(curves, histories[0])
    else:
        _draw_first_heads(curves, histories)
    for history, (dashes, colour) in zip(histories, cycle(RUN_STYLES)):
        _draw_by_head(by_head, history, dashes, colour)
        speeds = history.train.bytes_per_s / 1000
        speed.plot(history.train.minutes, speeds, dashes, color=colour, marker=marker(history), linewidth=1)
    _limit_bits(curves, histories)
    describe(curves, "bytes seen (MB)", "bits per byte", "bits per byte (lines: training, dots: validation)")
    describe(by_head, "future offset (1 = next byte)", "bits per byte", "bits per byte by head, at the end")
    describe(speed, "time (minutes)", "bytes per second (kB/s)", "training speed")
    by_head.xaxis.get_major_locator().set_params(integer=True)
    speed.set_ylim(bottom=0)
    return figure


def _record(line: bytes, path: Path, number: int) -> dict[str, Any]:
    """One line of metrics.jsonl."""
    try:
        record: dict[str, Any] = json.loads(line.decode())
    except ValueError as error:
        raise UserError(f"{path}, line {number} is no JSON: {error}; resuming the run takes it out") from error
    if not isinstance(record, dict) or "split" not in record:
        raise UserError(f"{path}, line {number} is not what `python -m bytemtp.train` writes")
    return record


def _curve(records: list[dict[str, Any]], path: Path) -> Curve:
    def column(key: str, scale: float = 1) -> Float[np.ndarray, " line"]:
        return np.array([record[key] for record in records], dtype=np.float64) * scale

    try:
        bits = [[math.nan if x is None else x for x in record["bpb_per_head"]] for record in records]
        bpb = np.array(bits, dtype=np.float64).reshape(len(records), -1 if records else 0)
        seconds_to_minutes = 1 / 60
        return Curve(
            column("bytes_seen"), bpb, column("bytes_per_s"), column("elapsed_s", seconds_to_minutes), column("step")
        )
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path} is not what `python -m bytemtp.train` writes: {error!r}") from error


def _row(history: History) -> tuple[str, ...]:
    train, last = history.train, history.last
    return (
        history.name,
        f"{train.steps[-1]:.0f}",
        f"{train.bytes_seen[-1] / 1e6:.1f}",
        f"{train.minutes[-1]:.1f}",
        f"{statistics.median(train.bytes_per_s) / 1000:.1f}",
        "valid" if last is history.valid else "train",
        in_a_row(last.bpb[-1]),
    )


def _draw_heads(axes: Axes, history: History) -> None:
    """All heads of one run, near ones dark and far ones light."""
    n = history.heads
    for i in range(n):
        colour = HEAD_COLOURS(0.9 * i / max(1, n - 1))
        _draw_curve(axes, history, i, "-", colour, f"head {i + 1}")
    if n <= LABELLED_HEADS:
        axes.legend(frameon=False, fontsize=8, ncols=2 if n > 4 else 1)
    else:
        _draw_head_scale(axes, n)


def _draw_head_scale(axes: Axes, n: int) -> None:
    # Colours stop at 0.9 of the map, where yellow on white is still to be seen.
    scale = ScalarMappable(Normalize(1, 1 + (n - 1) / 0.9), HEAD_COLOURS)
    bar = axes.figure.colorbar(scale, ax=axes, label="head", boundaries=np.arange(0.5, n + 1), ticks=[1, n // 2, n])
    bar.outline.set_visible(False)


def _draw_first_heads(axes: Axes, histories: Sequence[History]) -> None:
    for history, (dashes, colour) in zip(histories, cycle(RUN_STYLES)):
        _draw_curve(axes, history, 0, dashes, colour, f"{literal(history.name)}, n = {history.heads}")
    axes.legend(frameon=False, fontsize=8)


def _draw_curve(axes: Axes, history: History, i: int, dashes: str, colour: Any, label: str) -> None:
    """Head i's training line and validation dots."""
    train, valid = history.train, history.valid
    style = {"color": colour, "marker": marker(history), "linewidth": 1.2, "label": label}
    axes.plot(train.bytes_seen / 1e6, smooth(train.bpb[:, i]), dashes, **style)
    if len(valid):
        axes.plot(valid.bytes_seen / 1e6, valid.bpb[:, i], "o", color=colour, markersize=3.5, markeredgewidth=0)


def marker(history: History) -> str | None:
    """Of training's lines: through a single point there is none to be seen."""
    return "." if len(history.train) == 1 else None


def _draw_by_head(axes: Axes, history: History, dashes: str, colour: str) -> None:
    offsets = np.arange(1, history.heads + 1)
    axes.plot(offsets, history.last.bpb[-1], dashes, color=colour, marker="o", markersize=4, linewidth=1.2)


def smooth(values: Float[np.ndarray, " line"]) -> Float[np.ndarray, " line"]:
    """Running mean over a tenth of the lines, at most SMOOTH_LINES; over fewer at the start, where the curve falls.

    Lines without a number, as before a head begins to learn, keep none and count for no mean.
    """
    reach = min(SMOOTH_LINES, len(values) // 10) // 2
    there = np.isfinite(values)
    known, means = values[there], values.copy()
    reaches = [min(reach, i) for i in range(len(known))]
    means[there] = [known[i - r : i + r + 1].mean() for i, r in enumerate(reaches)]
    return means


def _known(values: Float[np.ndarray, " line"]) -> Float[np.ndarray, " known"]:
    return values[np.isfinite(values)]


def _limit_bits(axes: Axes, histories: Sequence[History]) -> None:
    """Leave each head's fall from 8 bits out of the picture, or the rest would be a flat line."""
    heads = slice(1 if len(histories) > 1 else None)
    settled = [bits[len(h.train) // 20 :] for h in histories for bits in map(_known, h.train.bpb.T[heads])]
    bits = np.concatenate([*settled, *(_known(h.valid.bpb[:, heads].ravel()) for h in histories)])
    if len(bits):
        low, high = bits.min(), bits.max()
        axes.set_ylim(low - 0.1 * (high - low) - 0.01, high + 0.05 * (high - low) + 0.01)

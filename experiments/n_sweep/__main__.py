"""How many bytes ahead should a small model predict, and at what price?  See README.md."""

from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bytemtp.common.cli import run_main
from bytemtp.reports.figures import COLOURS, describe
from experiments import library
from experiments.grid import Cell, Experiment, Line, main
from experiments.tables import draw_curve

HARMLESS, EQUAL = "far:0.02 (default)", "equal (the paper's)"


def score(cell: Cell) -> dict[str, Any]:
    return library.train_behind(EXPERIMENT, cell) | library.scores(cell)


def draw(lines: Sequence[Line]) -> Figure:
    """By the number of heads, for constant weights: bits per byte of head 1, and bytes a pass."""
    picture = Figure(figsize=(9, 3.2), dpi=150, layout="constrained")
    bits, passes = picture.subplots(1, 2)
    for colour, name in enumerate((HARMLESS, EQUAL)):
        of_kind = [line for line in lines if name in kinds(line)]
        curve(bits, of_kind, [line["bpb"] for line in of_kind], name, colour)
        several = [line for line in of_kind if line["drafting"]]
        curve(passes, several, [line["drafting"][-1]["bytes_per_pass"] for line in several], name, colour)
    counts = sorted({heads_of(line) for line in lines})
    for axes, label in ((bits, "held-out bits per byte of head 1"), (passes, "bytes a pass, T = 0.8")):
        axes.set_xscale("log", base=2)
        axes.set_xticks(counts, [str(n) for n in counts])
        describe(axes, "heads", label)
    bits.legend(frameon=False)
    return picture


def heads_of(line: Line) -> int:
    count: int = line["key"]["settings"]["model.n_future"]
    return count


def kinds(line: Line) -> list[str]:
    """The curves that a cell is on: both with one head, which has no weight."""
    settings = line["key"]["settings"]
    if heads_of(line) == 1:
        return [HARMLESS, EQUAL]
    if {"train.head_schedule", "train.freeze", "model.topology"} & settings.keys():
        return []
    usual = EXPERIMENT.presets()[line["key"]["grid"]]["common"].get("train.far_rows", 0.25)
    weights, rows = settings.get("train.head_weights", "far:0.02"), settings.get("train.far_rows", 0.25)
    return {("far:0.02", usual): [HARMLESS], ("equal", 1.0): [EQUAL]}.get((weights, rows), [])


def curve(axes: Axes, lines: Sequence[Line], values: Sequence[float], name: str, colour: int) -> None:
    """By the number of heads."""
    of_n: dict[int, list[float]] = {}
    for line, value in zip(lines, values, strict=True):
        of_n.setdefault(heads_of(line), []).append(value)
    draw_curve(axes, of_n, COLOURS[colour], name)


EXPERIMENT = Experiment("n_sweep", score, library.table, draw)

if __name__ == "__main__":
    run_main(lambda: main(EXPERIMENT))

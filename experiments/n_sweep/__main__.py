"""How many bytes ahead should a small model predict?  See README.md."""

import statistics
from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bytemtp.common.cli import run_main
from bytemtp.reports.figures import COLOURS, describe
from experiments.grid import Experiment, Line, main
from experiments.library import score, table

HARMLESS, EQUAL = "far:0.02 (default)", "equal (the paper's)"


def draw(lines: Sequence[Line]) -> Figure:
    """By the number of heads and the weight of the far ones: bits per byte of head 1, and bytes a pass."""
    picture = Figure(figsize=(9, 3.2), dpi=150, layout="constrained")
    bits, passes = picture.subplots(1, 2)
    for colour, name in enumerate((HARMLESS, EQUAL)):
        of_kind = [line for line in lines if kind(line) in (name, "")]
        curve(bits, of_kind, [line["bpb"] for line in of_kind], name, colour)
        several = [line for line in of_kind if line["drafting"]]
        curve(passes, several, [line["drafting"][-1]["bytes_per_pass"] for line in several], name, colour)
    describe(bits, "heads", "held-out bits per byte of head 1")
    describe(passes, "heads", "bytes a pass, T = 0.8")
    bits.legend(frameon=False)
    return picture


def kind(line: Line) -> str:
    """What the far heads' weight is called; nothing for one head, which has none."""
    settings = line["key"]["settings"]
    if settings["model.n_future"] == 1:
        return ""
    return EQUAL if settings.get("train.head_weights") == "equal" else HARMLESS


def curve(axes: Axes, lines: Sequence[Line], values: Sequence[float], name: str, colour: int) -> None:
    """A dot a seed, a line through the means; the number of heads in steps of two."""
    of_n: dict[int, list[float]] = {}
    for line, value in zip(lines, values, strict=True):
        of_n.setdefault(line["key"]["settings"]["model.n_future"], []).append(value)
    for n, at_n in of_n.items():
        axes.plot([n] * len(at_n), at_n, "o", color=COLOURS[colour], alpha=0.6, markersize=4)
    counts = sorted(of_n)
    axes.plot(counts, [statistics.mean(of_n[n]) for n in counts], color=COLOURS[colour], label=name)
    if counts:
        axes.set_xscale("log", base=2)
        axes.set_xticks(counts, [str(n) for n in counts])


EXPERIMENT = Experiment("n_sweep", score, table, draw)

if __name__ == "__main__":
    run_main(lambda: main(EXPERIMENT))

"""Table and picture of finished cells: precision@1 by method, distance and layer."""

import statistics
from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bytemtp.bench.turns import markdown_table
from bytemtp.reports.figures import COLOURS, describe, literal
from experiments.grid import Line
from experiments.tables import by_cell, mean_and_sd, paired

LAYERED = {
    "bytes": "linear map to bytes",
    "states": "linear map to a later state",
    "fixed": "transplant, fixed prompt",
    "learnt": "transplant, learnt prompt",
}
METHODS = LAYERED | {"heads": "the model's own heads", "bigram": "bigram"}
SHOWN = range(1, 8)
"""Distances in the table; at 0 all that is asked for is the byte that the state is for."""
BY_LAYER = 1
"""Distance at which the picture compares layers."""


def table(lines: Sequence[Line]) -> str:
    """Percentages at the best layer; then, for each method, every model against the first one."""
    cells = by_cell(lines)
    distances = [f"N = {n}" for n in SHOWN]
    rows = [row(method, name, of_cell) for method in METHODS for name, of_cell in cells.items() if of(method, of_cell)]
    first = markdown_table(rows, ["expected by", "model", "seeds", *distances])
    (base, of_base), *others = cells.items()
    differences = [
        [METHODS[method], f"{name} minus {base}", *difference(method, of_cell, of_base)]
        for method in METHODS
        for name, of_cell in others
        if of(method, of_cell) and of(method, of_base)
    ]
    second = markdown_table(differences, ["expected by", "difference, points", "seeds", *distances])
    return f"{first}\n\n{second}" if differences else first


def of(method: str, lines: Sequence[Line]) -> bool:
    """Whether it says something of all distances: a model with one head drafts nothing."""
    return len(lines[0]["precision"][method][0]) > SHOWN[-1]


def row(method: str, name: str, lines: Sequence[Line]) -> list[str]:
    return [METHODS[method], name, str(len(lines)), *(best_as_text(method, lines, n) for n in SHOWN)]


def best_as_text(method: str, lines: Sequence[Line], n: int) -> str:
    """`31.2 ± 0.4 (3)`: in brackets the layer, where there is a choice."""
    layer = best_layer(method, lines, n)
    text = mean_and_sd(percentages(method, lines, layer, n), ".1f")
    return f"{text} ({layer})" if method in LAYERED else text


def best_layer(method: str, lines: Sequence[Line], n: int) -> int:
    """With the highest mean over the seeds; the lowest such one."""
    layers = range(len(lines[0]["precision"][method]))
    return max(layers, key=lambda layer: statistics.mean(percentages(method, lines, layer, n)))


def percentages(method: str, lines: Sequence[Line], layer: int, n: int) -> list[float]:
    return [100 * line["precision"][method][layer][n] for line in lines]


def difference(method: str, lines: Sequence[Line], base: Sequence[Line]) -> list[str]:
    """Seeds, and at each distance `+1.5 ± 0.2, p 0.03`."""
    found = [paired(at_best(method, lines, n), at_best(method, base, n), "percent", ".1f") for n in SHOWN]
    return [found[0][0], *(f"{mean}, p {p}" if p else mean for _, mean, p in found)]


def at_best(method: str, lines: Sequence[Line], n: int) -> list[Line]:
    values = percentages(method, lines, best_layer(method, lines, n), n)
    return [{"key": line["key"], "percent": value} for line, value in zip(lines, values, strict=True)]


def draw(lines: Sequence[Line]) -> Figure:
    """A column a method: above by distance, at the best layer of each; below by layer.  Dots are seeds."""
    picture = Figure(figsize=(12, 5.4), dpi=150, layout="constrained")
    panels = picture.subplots(2, len(LAYERED), sharey="row")
    for above, below, (method, title) in zip(*panels, LAYERED.items(), strict=True):
        for colour, (name, of_cell) in zip(COLOURS, by_cell(lines).items(), strict=False):
            draw_cell(above, below, method, name, of_cell, colour)
        describe(above, "bytes ahead, N (at the best layer)", "", title)
        describe(below, f"layer (at N = {BY_LAYER})", "")
    panels[0][0].legend(fontsize=7, frameon=False)
    for axes in panels[:, 0]:
        axes.set_ylabel("precision@1, %")
    return picture


def draw_cell(above: Axes, below: Axes, method: str, name: str, lines: Sequence[Line], colour: str) -> None:
    distances = range(len(lines[0]["precision"][method][0]))
    layers = range(len(lines[0]["precision"][method]))
    by_distance = [percentages(method, lines, best_layer(method, lines, n), n) for n in distances]
    draw_curve(above, distances, by_distance, colour, "-", literal(name))
    draw_curve(below, layers, [percentages(method, lines, layer, BY_LAYER) for layer in layers], colour, "-")
    for other, style in (("bigram", "--"), ("heads", ":")):
        if of(other, lines):
            values = [percentages(other, lines, 0, n) for n in distances]
            draw_curve(above, distances, values, colour, style, literal(f"{name}, {METHODS[other]}"))


def draw_curve(
    axes: Axes, places: Sequence[int], values: Sequence[Sequence[float]], colour: str, style: str, label: str = ""
) -> None:
    """Through the means; a dot a seed.  A curve without a label is not in the legend."""
    means = [statistics.mean(at_place) for at_place in values]
    axes.plot(places, means, style, color=colour, linewidth=1.2, label=label or "_")
    if style == "-":
        axes.plot(places, values, "o", color=colour, alpha=0.4, markersize=3)

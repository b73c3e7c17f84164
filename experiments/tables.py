"""Numbers of several seeds as text and as pictures: mean and spread, paired differences, a dot a seed.

Try:  python -c "from experiments.tables import *; print(mean_and_sd([1.0, 2.0, 4.0], '.1f'))"
"""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bytemtp.bench.turns import markdown_table
from bytemtp.common.errors import UserError
from bytemtp.reports.figures import COLOURS, describe, literal
from experiments.grid import Line

SOURCES = {"hardware": "Hardware", "threads": "Threads a run", "commit": "Commit"}


def by_cell(lines: Sequence[Line]) -> dict[str, list[Line]]:
    """The lines of each cell, in order."""
    cells: dict[str, list[Line]] = {}
    for line in lines:
        cells.setdefault(line["key"]["cell"], []).append(line)
    return cells


def mean_and_sd(values: Sequence[float], form: str) -> str:
    """`1.57 ± 0.01`; without a spread where there is one value.  A sign that `form` asks for is the mean's."""
    mean = format(statistics.mean(values), form)
    return f"{mean} ± {statistics.stdev(values):{form.lstrip('+')}}" if len(values) > 1 else mean


def table_of_used(rows: Sequence[Sequence[str]], header: Sequence[str]) -> str:
    """Markdown, without the columns that would be empty."""
    used = [i for i, texts in enumerate(zip(*rows, strict=True)) if any(texts)]
    return markdown_table([[texts[i] for i in used] for texts in rows], [header[i] for i in used])


def percentages(lines: Sequence[Line], figure: str) -> str:
    """Of a figure that is a share from 0 to 1."""
    return mean_and_sd([100 * line[figure] for line in lines], ".1f")


def paired(a: Sequence[Line], b: Sequence[Line], figure: str, form: str, scale: float = 1.0) -> list[str]:
    """Of the seeds that both cells have: how many, mean difference a - b with its spread, and the p-value.

    p: two-sided, paired t-test.  Empty with fewer than two seeds, or where all differences are the same.
    """
    of_a, of_b = ({line["key"]["seed"]: scale * line[figure] for line in lines} for lines in (a, b))
    seeds = sorted(of_a.keys() & of_b.keys())
    if not seeds:
        return ["0", "", ""]
    x, y = ([of[seed] for seed in seeds] for of in (of_a, of_b))
    differences = [p - q for p, q in zip(x, y, strict=True)]
    return [str(len(seeds)), mean_and_sd(differences, "+" + form), p_value(x, y)]


def p_value(x: Sequence[float], y: Sequence[float]) -> str:
    differences = [p - q for p, q in zip(x, y, strict=True)]
    if len(x) < 2 or statistics.stdev(differences) <= 1e-9 * max(map(abs, (*x, *y))):  # the same, but for rounding
        return ""
    return f"{ttest(x, y):.2g}"


def ttest(x: Sequence[float], y: Sequence[float]) -> float:
    """UserError without scipy."""
    try:
        from scipy.stats import ttest_rel
    except ImportError:
        raise UserError("a p-value needs scipy; pip install 'bytemtp[experiments]'") from None
    return float(ttest_rel(x, y).pvalue)


def provenance(lines: Sequence[Line]) -> str:
    """One sentence on where the numbers of a table come from."""

    def values(name: str) -> str:
        return ", ".join(sorted({str(line[name]) for line in lines if name in line})) or "not noted"

    minutes = sum(line.get("minutes", 0.0) for line in lines)
    took = f", {minutes:.0f} minutes of training in all" if minutes else ""
    where = [f"{what}: {values(name)}." for name, what in SOURCES.items()]
    return " ".join([f"Runs: {len(lines)}{took}.", *where])


def dots(lines: Sequence[Line], figure: str, label: str) -> Figure:
    """A row a cell, a dot a seed, a stroke at the mean."""
    cells = by_cell(lines)
    picture, (axes,) = frame(list(cells), (label,))
    for place, of_cell in enumerate(cells.values()):
        draw_dots(axes, [line[figure] for line in of_cell], place, 0)
    return picture


def frame(names: Sequence[str], labels: Sequence[str]) -> tuple[Figure, list[Axes]]:
    """A panel a label, all with a row for each name."""
    picture = Figure(figsize=(3.5 + 3.5 * len(labels), 1 + 0.3 * len(names)), dpi=150, layout="constrained")
    panels = list(picture.subplots(1, len(labels), squeeze=False, sharey=True)[0])
    for axes, label in zip(panels, labels, strict=True):
        axes.set_yticks(range(len(names)), [literal(name) for name in names])
        describe(axes, label, "")
    panels[0].set_ylim(len(names) - 0.5, -0.5)
    return picture, panels


def draw_dots(axes: Axes, values: Sequence[float], place: float, colour: int) -> None:
    """In the colour of that number; nothing where there are no values."""
    if values:
        axes.plot(values, [place] * len(values), "o", color=COLOURS[colour], alpha=0.6, markersize=5)
        axes.plot([statistics.mean(values)], [place], "|", color=COLOURS[colour], markersize=14, markeredgewidth=2)


def draw_curve(axes: Axes, by_place: Mapping[Any, Sequence[float]], colour: str, label: str) -> None:
    """A dot a value, a line through the means."""
    for place, values in by_place.items():
        axes.plot([place] * len(values), values, "o", color=colour, alpha=0.6, markersize=4)
    places = sorted(by_place)
    axes.plot(places, [statistics.mean(by_place[place]) for place in places], color=colour, label=label)


def by_group(cells: dict[str, list[Line]]) -> dict[str, list[str]]:
    """Names of the cells that differ in their heads alone: `0.3M, n=2, equal` belongs to `0.3M`; each in order."""
    groups: dict[str, list[str]] = {}
    for name in cells:
        groups.setdefault(name.partition(", n=")[0], []).append(name)
    return groups


def group_panels(cells: dict[str, list[Line]], height: float) -> tuple[Figure, list[tuple[Axes, str, list[str]]]]:
    """A panel a group, with the group's name and those of its cells."""
    groups = by_group(cells)
    picture = Figure(figsize=(1 + 3.2 * len(groups), height), dpi=150, layout="constrained")
    panels = picture.subplots(1, len(groups), squeeze=False, sharey=True)[0]
    return picture, [(axes, *entry) for axes, entry in zip(panels, groups.items(), strict=True)]


def draw_percentages(
    axes: Axes, places: Sequence[float], shares: Sequence[Sequence[float]], colour: str, label: str
) -> None:
    """Shares from 0 to 1 by seed, then by place: a line through the means, a dot a seed."""
    by_place = [[100 * share for share in at_place] for at_place in zip(*shares, strict=True)]
    axes.plot(places, list(map(statistics.mean, by_place)), color=colour, linewidth=1.2, label=literal(label))
    axes.plot(places, by_place, "o", color=colour, alpha=0.4, markersize=3)

"""Tables and picture of induction: names' second parts at the end of training and on the way, against one head."""

from collections.abc import Sequence

from matplotlib.figure import Figure

from bytemtp.bench.turns import markdown_table
from bytemtp.reports.figures import COLOURS, describe
from experiments.grid import Line
from experiments.tables import by_cell, by_group, draw_percentages, group_panels, mean_and_sd, paired, percentages

FIGURES = {
    "second": "second part, %",
    "byte": "its bytes, %",
    "start": "its first byte, %",
    "new": "at first mentions, %",
}
QUARTERS = {0.25: "a quarter", 0.5: "half", 0.75: "three quarters", 1.0: "all"}
"""Shares of the run for which the tables have a column or a row."""


def table(lines: Sequence[Line]) -> str:
    """The end of training; the second part on the way there; every model against one head of its size."""
    cells = by_cell(lines)
    end = ["cell", "seeds", *FIGURES.values(), "bits per byte", "minutes a run"]
    way = ["second part, %, after", *(f"{name} of the run" for name in QUARTERS.values())]
    parts = [
        markdown_table([at_end(*entry) for entry in cells.items()], end),
        markdown_table([on_the_way(*entry) for entry in cells.items()], way),
    ]
    if rows := differences(cells):
        parts.append(markdown_table(rows, ["difference of the second part, points", "after", "seeds", "mean", "p"]))
    return "\n\n".join(parts)


def at_end(name: str, lines: Sequence[Line]) -> list[str]:
    return [
        name,
        str(len(lines)),
        *(percentages(lines, figure) for figure in FIGURES),
        mean_and_sd([line["bpb"] for line in lines], ".3f"),
        mean_and_sd([line["minutes"] for line in lines], ".1f"),
    ]


def on_the_way(name: str, lines: Sequence[Line]) -> list[str]:
    return [name, *(percentages(after(share, lines), "second") for share in QUARTERS)]


def after(share: float, lines: Sequence[Line]) -> list[Line]:
    """With the figures of the first checkpoint that had so much of the run behind it."""
    return [line | next(one for one in line["way"] if one["step"] >= share * line["steps"]) for line in lines]


def differences(cells: dict[str, list[Line]]) -> list[list[str]]:
    return [
        [f"{name} minus {base}", when, *paired(*(after(share, cells[n]) for n in (name, base)), "second", ".1f", 100)]
        for base, *others in by_group(cells).values()
        for name in others
        for share, when in QUARTERS.items()
        if share in (0.5, 1.0)
    ]


def draw(lines: Sequence[Line]) -> Figure:
    """A panel a size: the second part over the run."""
    cells = by_cell(lines)
    picture, panels = group_panels(cells, height=3.2)
    for axes, size, names in panels:
        for colour, name in enumerate(names):
            ways = [line["way"] for line in cells[name]]
            shares = [[one["second"] for one in way] for way in ways]
            steps = [one["step"] for one in ways[0]]
            draw_percentages(axes, steps, shares, COLOURS[colour], name.removeprefix(f"{size}, "))
        describe(axes, "steps", "names' second parts (%)", size)
    panels[0][0].legend(frameon=False, fontsize=8)
    return picture

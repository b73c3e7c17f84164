"""Tables and picture of the choice tasks: each kind of question along training, every model against one head."""

from collections.abc import Sequence

from matplotlib.figure import Figure

from bytemtp.bench.turns import markdown_table
from bytemtp.reports.figures import COLOURS, describe
from experiments.grid import Line
from experiments.library import BASE
from experiments.tables import by_cell, draw_percentages, paired, percentages

NOT_KINDS = {"step"}
"""Of what a checkpoint has; all else are kinds of questions."""


def kinds(lines: Sequence[Line]) -> list[str]:
    return [name for name in lines[0]["way"][0] if name not in NOT_KINDS]


def table(lines: Sequence[Line]) -> str:
    """Accuracy by kind along training, then every model against one head."""
    cells = by_cell(lines)
    parts = [accuracies(cells, kind) for kind in kinds(lines)]
    if rows := differences(cells, kinds(lines)):
        parts.append(markdown_table(rows, ["difference, points", "of", "after", "seeds", "mean", "p"]))
    return "\n\n".join(parts)


def accuracies(cells: dict[str, list[Line]], kind: str) -> str:
    """A row a cell, a column for every second checkpoint, the last one among them."""
    steps = [one["step"] for one in next(iter(cells.values()))[0]["way"]][::-2][::-1]
    rows = [
        [name, str(len(of_cell)), *(percentages(at_step(of_cell, step), kind) for step in steps)]
        for name, of_cell in cells.items()
    ]
    return markdown_table(rows, [f"{kind}, %, after", "seeds", *(f"{step:,} steps" for step in steps)])


def at_step(lines: Sequence[Line], step: int) -> list[Line]:
    """With the accuracies of the checkpoint after so many steps."""
    return [line | next(one for one in line["way"] if one["step"] == step) for line in lines]


def differences(cells: dict[str, list[Line]], names: Sequence[str]) -> list[list[str]]:
    """Half way and in the end."""
    steps = [one["step"] for one in next(iter(cells.values()))[0]["way"]]
    half = min(steps, key=lambda step: abs(step - steps[-1] / 2))
    return [
        [f"{name} minus {BASE}", kind, f"{step:,} steps", *paired(*against(cells, name, step), kind, ".1f", 100)]
        for kind in names
        for name in cells
        for step in (half, steps[-1])
        if BASE in cells and name != BASE
    ]


def against(cells: dict[str, list[Line]], name: str, step: int) -> tuple[list[Line], list[Line]]:
    return at_step(cells[name], step), at_step(cells[BASE], step)


def draw(lines: Sequence[Line]) -> Figure:
    """A panel a kind: accuracy over the run."""
    cells, names = by_cell(lines), kinds(lines)
    picture = Figure(figsize=(1 + 3.6 * len(names), 3.2), dpi=150, layout="constrained")
    for axes, kind in zip(picture.subplots(1, len(names), squeeze=False)[0], names, strict=True):
        for colour, (name, of_cell) in enumerate(cells.items()):
            shares = [[one[kind] for one in line["way"]] for line in of_cell]
            steps = [one["step"] for one in of_cell[0]["way"]]
            draw_percentages(axes, steps, shares, COLOURS[colour], name)
        describe(axes, "steps", f"{kind} right (%)", kind)
    picture.axes[0].legend(frameon=False, fontsize=8)
    return picture

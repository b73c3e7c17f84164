"""Tables and picture of the polynomials: exact answers by number of operations, against one head."""

from collections.abc import Sequence

from matplotlib.figure import Figure

from bytemtp.bench.turns import markdown_table
from bytemtp.reports.figures import COLOURS, describe
from experiments.grid import Line
from experiments.tables import by_cell, by_group, draw_percentages, group_panels, mean_and_sd, paired

OPERATOR_NAMES = {"-": "negation", "+": "sum", "*": "product", "@": "composition"}
SUMMARIES = {"within": "as in training", "beyond": "more than in training"}


def table(lines: Sequence[Line]) -> str:
    """Exact answers by number of operations m; by operator, and single coefficients; every model against one head."""
    cells = by_cell(lines)
    counts = range(1, 1 + len(lines[0]["exact"]))
    by_m = [f"m = {m}{'' if m <= learnt(lines) else ' (beyond)'}" for m in counts]
    rows = [exact(*entry) for entry in cells.items()]
    first = markdown_table(rows, ["exact answers, %", "seeds", *by_m, "minutes a run"])
    header = ["%", *(f"m = 1, {name}" for name in OPERATOR_NAMES.values()), *(f"coefficients, m = {m}" for m in counts)]
    second = markdown_table([details(*entry) for entry in cells.items()], header)
    rows = differences(cells)
    third = markdown_table(rows, ["difference of exact answers, points", "operations", "seeds", "mean", "p"])
    return "\n\n".join([first, second, *([third] if rows else [])])


def learnt(lines: Sequence[Line]) -> int:
    """Most operations of a question in training."""
    count: int = lines[0]["key"]["settings"]["ring.learnt"]
    return count


def exact(name: str, lines: Sequence[Line]) -> list[str]:
    by_m = zip(*(line["exact"] for line in lines), strict=True)
    minutes = mean_and_sd([line["minutes"] for line in lines], ".1f")
    return [name, str(len(lines)), *map(percentages, by_m), minutes]


def details(name: str, lines: Sequence[Line]) -> list[str]:
    by_operator = ([line["operators"][operator] for line in lines] for operator in OPERATOR_NAMES)
    by_m = zip(*(line["digits"] for line in lines), strict=True)
    return [name, *map(percentages, by_operator), *map(percentages, by_m)]


def percentages(shares: Sequence[float]) -> str:
    return mean_and_sd([100 * share for share in shares], ".1f")


def differences(cells: dict[str, list[Line]]) -> list[list[str]]:
    return [
        [f"{name} minus {base}", operations, *paired(cells[name], cells[base], figure, ".1f", 100)]
        for base, *others in by_group(cells).values()
        for name in others
        for figure, operations in SUMMARIES.items()
    ]


def draw(lines: Sequence[Line]) -> Figure:
    """A panel a group of cells: exact answers by number of operations."""
    cells = by_cell(lines)
    picture, panels = group_panels(cells, height=3.2)
    counts = range(1, 1 + len(lines[0]["exact"]))
    for axes, group, names in panels:
        for colour, name in enumerate(names):
            shares = [line["exact"] for line in cells[name]]
            draw_percentages(axes, counts, shares, COLOURS[colour], name.removeprefix(f"{group}, "))
        axes.axvline(learnt(lines) + 0.5, color=COLOURS[-1], linewidth=0.8, linestyle="--")
        axes.set_xticks(counts)
        describe(axes, "operations (dashed: most in training)", "exact answers (%)", group)
    panels[0][0].legend(frameon=False, fontsize=8)
    return picture

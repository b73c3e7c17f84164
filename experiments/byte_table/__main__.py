"""How good are programs of byte models with 1, 8, 16 and 32 heads?  See README.md."""

from collections.abc import Sequence
from typing import Any

from matplotlib.figure import Figure

from bytemtp.bench.turns import markdown_table
from bytemtp.common.cli import run_main
from experiments import programs
from experiments.grid import Cell, Experiment, Line, main, train
from experiments.library import BASE
from experiments.tables import by_cell, draw_dots, frame, mean_and_sd, paired, percentages


def score(cell: Cell) -> dict[str, Any]:
    return train(cell, cell.options["train"]) | programs.passk(cell)


def figures(lines: Sequence[Line]) -> list[str]:
    """`tiny code pass@1` and so on, as the paper has them: by set of problems, then by tries."""
    return [name for name in lines[0] if " pass@" in name]


def table(lines: Sequence[Line]) -> str:
    """In the layout of the paper's table 1; then each cell against one head."""
    cells, names = by_cell(lines), figures(lines)
    shares = [
        [
            name,
            str(len(of_cell)),
            *(percentages(of_cell, figure) for figure in names),
            mean_and_sd([line["minutes"] for line in of_cell], ".1f"),
        ]
        for name, of_cell in cells.items()
    ]
    against = [
        [f"{name} minus {BASE}", figure, *paired(of_cell, cells[BASE], figure, ".1f", 100)]
        for name, of_cell in cells.items()
        for figure in names
        if BASE in cells and name != BASE
    ]
    tables = [markdown_table(shares, ["heads", "seeds", *(f"{name}, %" for name in names), "minutes"])]
    if against:
        tables.append(markdown_table(against, ["difference, points", "of", "seeds", "mean", "p"]))
    return "\n\n".join(tables)


def draw(lines: Sequence[Line]) -> Figure:
    """A row a cell, a panel a figure, a dot a seed."""
    cells, names = by_cell(lines), figures(lines)
    picture, panels = frame(list(cells), [f"{name} (%)" for name in names])
    for place, of_cell in enumerate(cells.values()):
        for axes, figure in zip(panels, names, strict=True):
            draw_dots(axes, [100 * line[figure] for line in of_cell], place, 0)
    return picture


EXPERIMENT = Experiment("byte_table", score, table, draw)

if __name__ == "__main__":
    run_main(lambda: main(EXPERIMENT))

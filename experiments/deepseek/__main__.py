"""Does one module for the byte after next help, as in DeepSeek-V3?  See README.md.

A preset with held-out files (heldout) is scored in bits per byte, one with problems in pass@k.
"""

from collections.abc import Sequence
from typing import Any

from matplotlib.figure import Figure

import bytemtp
from bytemtp.bench.turns import markdown_table
from bytemtp.common.cli import run_main
from bytemtp.common.runtime import pick_device
from bytemtp.reports.figures import COLOURS
from experiments import library, programs
from experiments.grid import Cell, Experiment, Line, main, train
from experiments.library import BASE, TEMPERATURES, drafted
from experiments.tables import by_cell, draw_dots, frame, mean_and_sd, paired


def score(cell: Cell) -> dict[str, Any]:
    scored = train(cell, cell.options["train"])
    if "heldout" in cell.options:
        scored |= library.scores(cell)
    else:
        prompts = programs.prompts(cell, library.PROMPTS)
        scored |= {"drafting": library.drafting(bytemtp.load(cell.folder, pick_device().value), prompts)}
    return scored | (programs.passk(cell) if "problems" in cell.options else {})


def qualities(lines: Sequence[Line]) -> dict[str, tuple[str, str, float]]:
    """What the cells were scored in: by figure, its header, format and factor."""
    of_passk = {name: (f"{name}, %", ".1f", 100.0) for name in lines[0] if "pass@" in name}
    return {name: shown for name, shown in {"bpb": ("bpb, head 1", ".4f", 1.0)}.items() if name in lines[0]} | of_passk


def table(lines: Sequence[Line]) -> str:
    cells, figures = by_cell(lines), qualities(lines)
    header = [
        "cell",
        "seeds",
        *(text for title, _, _ in figures.values() for text in (title, f"minus {BASE}", "p")),
        *(f"second byte, T = {t:g}, %" for t in TEMPERATURES),
        *(f"speed-up, T = {t:g}" for t in TEMPERATURES),
        "minutes",
    ]
    rows = [
        [
            name,
            str(len(of_cell)),
            *(text for figure in figures for text in quality(of_cell, cells.get(BASE, []), figure)),
            *(accepted(of_cell, i) for i in range(len(TEMPERATURES))),
            *(drafted(of_cell, i, "speed_up") for i in range(len(TEMPERATURES))),
            mean_and_sd([line["minutes"] for line in of_cell], ".1f"),
        ]
        for name, of_cell in cells.items()
    ]
    return markdown_table(rows, header)


def quality(lines: Sequence[Line], base: Sequence[Line], figure: str) -> list[str]:
    """The figure, and how much it is above one head's."""
    _, form, scale = qualities(lines)[figure]
    against = ["", ""] if lines[0] in base else paired(lines, base, figure, form, scale)[1:]
    return [mean_and_sd([scale * line[figure] for line in lines], form), *against]


def accepted(lines: Sequence[Line], temperature: int) -> str:
    """How often head 1 accepts the second byte, in percent; empty for one head."""
    shares = acceptance(lines, temperature)
    return mean_and_sd(shares, ".1f") if shares else ""


def acceptance(lines: Sequence[Line], temperature: int) -> list[float]:
    return [100 * line["drafting"][temperature]["second_byte"] for line in lines if line["drafting"]]


def draw(lines: Sequence[Line]) -> Figure:
    """A row a cell, a dot a seed: quality, and how often the second byte is accepted."""
    cells, figures = by_cell(lines), qualities(lines)
    labels = [title for title, _, _ in figures.values()]
    picture, panels = frame(list(cells), [*labels, "second byte accepted (%)"])
    for place, of_cell in enumerate(cells.values()):
        for axes, (figure, (_, _, scale)) in zip(panels, figures.items(), strict=False):
            draw_dots(axes, [scale * line[figure] for line in of_cell], place, 0)
        for i in range(len(TEMPERATURES)):
            draw_dots(panels[-1], acceptance(of_cell, i), place, i)
    for i, temperature in enumerate(TEMPERATURES):
        panels[-1].plot([], [], "o", color=COLOURS[i], label=f"T = {temperature:g}")
    panels[-1].legend(fontsize=8)
    return picture


EXPERIMENT = Experiment("deepseek", score, table, draw)

if __name__ == "__main__":
    run_main(lambda: main(EXPERIMENT))

"""Which settings give the fewest bits per byte of held-out files; see README.md."""

import statistics
from collections.abc import Sequence
from typing import Any

from matplotlib.figure import Figure

from bytemtp.common.cli import run_main
from experiments import library
from experiments.grid import Cell, Experiment, Line, main, train
from experiments.tables import by_cell, dots, mean_and_sd, paired, table_of_used


def score(cell: Cell) -> dict[str, Any]:
    if trick := cell.settings.get("trick"):
        return train(cell, cell.options["train"], program=["experiments.recipe.tricks", trick]) | library.scores(cell)
    return library.train_behind(EXPERIMENT, cell) | library.scores(cell)


def table(lines: Sequence[Line]) -> str:
    """Means over the seeds, each seed, and each cell against the first, of the seeds that both have."""
    cells = by_cell(lines)
    base = next(iter(cells))
    measured = ["steps", "MB seen", "bpb, head 1", "each seed", f"minus {base}", "p", "head 2", *library.BYTES_A_PASS]
    rows = [row(name, of_cell, cells[base]) for name, of_cell in cells.items()]
    return table_of_used(rows, ["cell", "seeds", *measured])


def row(name: str, lines: Sequence[Line], base: Sequence[Line]) -> list[str]:
    is_alone = lines[0] in base or len(lines) < 2
    second = [line["bpb_per_head"][1] for line in lines if len(line["bpb_per_head"]) > 1]
    return [
        name,
        " ".join(str(line["key"]["seed"]) for line in lines),
        f"{statistics.mean(line['steps'] for line in lines):,.0f}",
        f"{statistics.mean(line['bytes_seen'] for line in lines) / 1e6:.2f}",
        mean_and_sd([line["bpb"] for line in lines], ".4f"),
        " ".join(f"{line['bpb']:.4f}" for line in lines),
        *(["", ""] if is_alone else paired(lines, base, "bpb", ".4f")[1:]),
        f"{statistics.mean(second):.3f}" if second else "",
        *(library.drafted(lines, i, "bytes_per_pass") for i in range(len(library.BYTES_A_PASS))),
    ]


def draw(lines: Sequence[Line]) -> Figure:
    return dots(lines, "bpb", "held-out bits per byte of head 1")


EXPERIMENT = Experiment("recipe", score, table, draw)

if __name__ == "__main__":
    run_main(lambda: main(EXPERIMENT))

"""Which settings give the fewest bits per byte of held-out files; see README.md."""

import statistics
from collections.abc import Sequence
from typing import Any

from matplotlib.figure import Figure

import bytemtp
from bytemtp.common.cli import run_main
from bytemtp.common.settings import DataConfig
from bytemtp.evaluation.bits_per_byte import beginnings
from experiments import library
from experiments.grid import Cell, Experiment, Line, main, train
from experiments.recipe.copying import bits_of_copies
from experiments.tables import by_cell, dots, mean_and_sd, paired, table_of_used


def score(cell: Cell) -> dict[str, Any]:
    if trick := cell.settings.get("trick"):
        trained = train(cell, cell.options["train"], program=["experiments.recipe.tricks", trick])
    else:
        trained = library.train_behind(EXPERIMENT, cell)
    return trained | library.scores(cell) | copying(cell)


def copying(cell: Cell) -> dict[str, float]:
    """Of presets that name the bytes of the beginnings that are to be copied."""
    if "copied" not in cell.options:
        return {}
    size, heldout = cell.options["copied"], [cell.options["heldout"]]
    texts = [text for text in beginnings(heldout, 64, size, DataConfig()) if len(text) == size]
    return {"copy_bpb": bits_of_copies(bytemtp.load(cell.folder), texts)}


def table(lines: Sequence[Line]) -> str:
    """Means over the seeds, each seed, and each cell against the first, of the seeds that both have."""
    cells = by_cell(lines)
    base = next(iter(cells))
    measured = ["steps", "MB seen", "bpb, head 1", "each seed", f"minus {base}", "p", "head 2", *library.BYTES_A_PASS]
    measured += ["of a copy", f"copy minus {base}"]
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
        *(copies(lines, base, is_alone) if "copy_bpb" in lines[0] else ["", ""]),
    ]


def copies(lines: Sequence[Line], base: Sequence[Line], is_alone: bool) -> list[str]:
    """Bits per byte of second copies, and against the first cell with the p-value."""
    against = "" if is_alone else "{}, p {}".format(*paired(lines, base, "copy_bpb", ".3f")[1:])
    return [mean_and_sd([line["copy_bpb"] for line in lines], ".3f"), against]


def draw(lines: Sequence[Line]) -> Figure:
    return dots(lines, "bpb", "held-out bits per byte of head 1")


EXPERIMENT = Experiment("recipe", score, table, draw)

if __name__ == "__main__":
    run_main(lambda: main(EXPERIMENT))

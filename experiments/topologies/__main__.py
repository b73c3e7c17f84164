"""Which topology of heads is best at equal parameters, and is a trunk lazy?  See README.md.

Beside its settings a preset says at how many places the trunk's output is looked at (places).
"""

from collections.abc import Sequence
from typing import Any

from matplotlib.figure import Figure

import bytemtp
from bytemtp.bench.turns import markdown_table
from bytemtp.common.cli import run_main
from bytemtp.common.runtime import pick_device
from bytemtp.reports.figures import COLOURS
from experiments import library
from experiments.grid import Cell, Experiment, Line, main
from experiments.tables import by_cell, draw_dots, frame, mean_and_sd
from experiments.topologies import trunk

EQUAL = ", equal"
"""Ends the names of cells with the paper's weights."""
WEIGHTINGS = "far:0.02 (default)", "equal (the paper's)"


def score(cell: Cell) -> dict[str, Any]:
    scored = library.score(cell)
    model = bytemtp.load(cell.folder, pick_device().value)
    files = cell.options["train"], cell.options["heldout"]
    return scored | shape(model) | {"trunk": trunk.bits(model, *files, cell.options["places"])}


def shape(model: bytemtp.ByteMTP) -> dict[str, int]:
    """Parameters, the layers of the trunk, and those that a byte of plain decoding goes through."""
    layers = len(model.trunk)
    to_first = layers + (len(model.path_to_first_head) if model.config.head_layers else 0)
    return {"parameters": model.num_parameters(), "trunk_layers": layers, "first_layers": to_first}


COLUMNS: library.Columns = {
    "parameters": lambda lines: f"{lines[0]['parameters']:,}",
    "layers to head 1": lambda lines: str(lines[0]["first_layers"]),
    "bytes/s, T = 0.8": lambda lines: library.drafted(lines, -1, "bytes_per_s", ",.0f"),
}


def table(lines: Sequence[Line]) -> str:
    """Quality and decoding, then what linear maps read off the trunk."""
    return f"{library.table(lines, COLUMNS)}\n\n{trunks(lines)}"


def trunks(lines: Sequence[Line]) -> str:
    header = ["bits of a linear map from the trunk", "trunk layers", *(f"byte {n + 1}" for n in range(trunk.AHEAD))]
    rows = [
        [
            name,
            str(of_cell[0]["trunk_layers"]),
            *(mean_and_sd(values, ".3f") for values in zip(*(line["trunk"] for line in of_cell), strict=True)),
        ]
        for name, of_cell in by_cell(lines).items()
    ]
    return markdown_table(rows, header)


def draw(lines: Sequence[Line]) -> Figure:
    """A row a topology, a colour a weighting, dots for the seeds."""
    cells = by_cell(lines)
    names = list(dict.fromkeys(name.removesuffix(EQUAL) for name in cells))
    labels = "held-out bits per byte of head 1", "bytes a pass, T = 0.8", "bits of byte 4 from the trunk"
    picture, panels = frame(names, labels)
    for name, of_cell in cells.items():
        decoded = [line["drafting"][-1]["bytes_per_pass"] for line in of_cell if line["drafting"]]
        figures = [line["bpb"] for line in of_cell], decoded, [line["trunk"][-1] for line in of_cell]
        for axes, values in zip(panels, figures, strict=True):
            draw_dots(axes, values, names.index(name.removesuffix(EQUAL)), int(name.endswith(EQUAL)))
    for colour, label in enumerate(WEIGHTINGS):
        panels[0].plot([], [], "o", color=COLOURS[colour], label=label)
    panels[0].legend(fontsize=8)
    return picture


EXPERIMENT = Experiment("topologies", score, table, draw)

if __name__ == "__main__":
    run_main(lambda: main(EXPERIMENT))

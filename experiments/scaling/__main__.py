"""Does the price of several heads fall as models grow, and where would it be nothing?  See README.md."""

import math
import statistics
from collections.abc import Sequence
from typing import Any

from matplotlib.figure import Figure

import bytemtp
from bytemtp.bench.turns import markdown_table
from bytemtp.common.cli import run_main
from bytemtp.model.layers import Block
from bytemtp.reports.figures import COLOURS, describe
from experiments import library
from experiments.grid import Cell, Experiment, Line, main
from experiments.library import BASE
from experiments.tables import by_cell, draw_curve, mean_and_sd, p_value, paired

LARGEST = 15
"""Power of ten that no model's size reaches."""
Prices = dict[int, dict[int, float]]
"""Bits per byte more than one head of the same size and seed: by size in parameters, then by seed."""


def score(cell: Cell) -> dict[str, Any]:
    return library.score(cell) | {"size": size_of(bytemtp.load(cell.folder))}


def size_of(model: bytemtp.ByteMTP) -> int:
    """Parameters of the transformer layers."""
    layers = [module for module in model.modules() if isinstance(module, Block)]
    return sum(parameter.numel() for layer in layers for parameter in layer.parameters())


def table(lines: Sequence[Line]) -> str:
    """Every cell against one head of its size, then the straight lines through these prices."""
    cells = by_cell(lines)
    header = [
        "cell",
        "seeds",
        "parameters",
        "bpb, head 1",
        "minus one head",
        "p",
        "bytes a pass, T = 0.8",
        "speed-up, T = 0.8",
    ]
    tables = [markdown_table([row(name, cells) for name in cells], [*header, "minutes"])]
    if trends := [trend(kind, prices) for kind, prices in prices_of(lines).items() if fits_of(prices)]:
        tables.append(
            markdown_table(trends, ["heads", "sizes", "change for ten times the size, bpb", "p", "nothing at"])
        )
    return "\n\n".join(tables)


def row(name: str, cells: dict[str, list[Line]]) -> list[str]:
    lines, size = cells[name], name.partition(", ")[0]
    base = cells.get(f"{size}, {BASE}", [])
    against = ["", ""] if lines is base else paired(lines, base, "bpb", ".4f")[1:]
    return [
        name,
        str(len(lines)),
        f"{lines[0]['size']:,}",
        mean_and_sd([line["bpb"] for line in lines], ".4f"),
        *against,
        library.drafted(lines, -1, "bytes_per_pass"),
        library.drafted(lines, -1, "speed_up"),
        mean_and_sd([line["minutes"] for line in lines], ".1f"),
    ]


def prices_of(lines: Sequence[Line]) -> dict[str, Prices]:
    """By what follows the size in a cell's name; seeds without a run of one head are left out."""
    kinds: dict[str, Prices] = {}
    bits = {(line["size"], kind_of(line), line["key"]["seed"]): line["bpb"] for line in lines}
    for (size, kind, seed), value in bits.items():
        if kind != BASE and (size, BASE, seed) in bits:
            kinds.setdefault(kind, {}).setdefault(size, {})[seed] = value - bits[size, BASE, seed]
    return kinds


def kind_of(line: Line) -> str:
    """`0.2M, n=8, equal` is of the kind `n=8, equal`."""
    return str(line["key"]["cell"].partition(", ")[2])


def trend(kind: str, prices: Prices) -> list[str]:
    """A straight line a seed: mean slope, its p-value (two-sided t-test against none), and where the mean line ends."""
    fits = fits_of(prices)
    slopes = [slope for slope, _ in fits]
    slope, start = (statistics.mean(values) for values in zip(*fits, strict=True))
    change = [mean_and_sd(slopes, "+.4f"), p_value(slopes, [0.0] * len(slopes))]
    return [kind, str(len(prices)), *change, free_size(slope, start)]


def free_size(slope: float, start: float) -> str:
    """Size at which a falling price is nothing; none where it hardly falls, or is nothing at one parameter."""
    has_end = slope < 0 < start < -LARGEST * slope
    return f"{10 ** (-start / slope):.2g}" if has_end else "no size"


def fits_of(prices: Prices) -> list[tuple[float, float]]:
    """Slope for ten times the size, and price at one parameter, by least squares; of seeds with three sizes or more."""
    fits = []
    for seed in sorted(set().union(*prices.values())):
        sizes = [size for size in prices if seed in prices[size]]
        if len(sizes) > 2:
            line = statistics.linear_regression(list(map(math.log10, sizes)), [prices[size][seed] for size in sizes])
            fits.append((line.slope, line.intercept))
    return fits


def draw(lines: Sequence[Line]) -> Figure:
    """By size: bits per byte, and the price against one head, dots for seeds and lines through the means."""
    picture = Figure(figsize=(9, 3.4), dpi=150, layout="constrained")
    bits, prices = picture.subplots(1, 2)
    of_kind: dict[str, Prices] = {}
    for line in lines:
        of_kind.setdefault(kind_of(line), {}).setdefault(line["size"], {})[line["key"]["seed"]] = line["bpb"]
    colours = dict(zip(of_kind, COLOURS, strict=False))
    for axes, kinds in ((bits, of_kind), (prices, prices_of(lines))):
        for kind, sizes in kinds.items():
            by_size = {size: list(of_size.values()) for size, of_size in sizes.items()}
            draw_curve(axes, by_size, colours[kind], kind)
        axes.set_xscale("log")
    prices.axhline(0, color="#000000", linewidth=0.8)
    describe(bits, "parameters of the layers", "held-out bits per byte of head 1")
    describe(prices, "parameters of the layers", "bits per byte more than one head")
    bits.legend(frameon=False, fontsize=8)
    return picture


EXPERIMENT = Experiment("scaling", score, table, draw)

if __name__ == "__main__":
    run_main(lambda: main(EXPERIMENT))

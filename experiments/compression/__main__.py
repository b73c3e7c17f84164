"""How small do minutes of training make files, and do drafts speed up decompression?  See README.md."""

import statistics
import time
from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch
from matplotlib.figure import Figure

import bytemtp
from bytemtp.bench.quality import bits_per_byte
from bytemtp.bench.turns import markdown_table
from bytemtp.common.cli import run_main
from bytemtp.common.errors import UserError
from bytemtp.common.settings import DataConfig
from bytemtp.common.vocab import EOT
from bytemtp.decoding.coding.codec import ChainMode, decode, encode
from bytemtp.evaluation.bits_per_byte import read_ids
from bytemtp.reports.figures import COLOURS
from experiments.grid import Cell, Experiment, Line, main, train
from experiments.tables import by_cell, draw_dots, frame, mean_and_sd, paired

WAYS: dict[str, ChainMode] = {"one byte a pass": "ar", "heads": "speculative", "copies": "copy", "auto": "auto"}
"""How decompression drafts."""
SIZES = {"ours": "ours", "bpb": "evaluate bpb", "zstd-19": "zstd -19", "xz-9": "xz -9"}
"""Figures in bits per byte, and their columns."""
WEIGHTS = {"float32": 4, "bfloat16": 2}
"""Bytes of a weight."""


def score(cell: Cell) -> dict[str, Any]:
    trained = train(cell, cell.options["train"])
    sample = beginning(cell.options["heldout"], cell.options["sample"])
    path = cell.folder.with_suffix(".sample")
    path.write_bytes(sample)
    scores = bits_per_byte(cell.folder, [str(path)])
    model = bytemtp.load(cell.folder)
    size = len(encode(model, sample).data)
    timed, count = sample[: cell.options["timed"]], cell.options["parts"]
    parts = [timed[len(timed) * i // count : len(timed) * (i + 1) // count] for i in range(count)]
    return {
        **trained,
        "bytes": len(sample),
        "ours": 8 * size / len(sample),
        **{name: scores[name] for name in SIZES if name != "ours"},
        **with_model(model, size, len(sample)),
        **speeds(model, parts),
    }


def beginning(path: str, size: int) -> bytes:
    """The first bytes of all documents, joined.  UserError if there are fewer."""
    text = bytearray()
    for ids in read_ids([path], DataConfig()):
        text += bytes(ids[ids != EOT].to(torch.uint8).numpy())
        if len(text) >= size:
            return bytes(text[:size])
    raise UserError(f"{path} has {len(text):,} bytes, fewer than the sample's {size:,}")


def with_model(model: bytemtp.ByteMTP, size: int, count: int) -> dict[str, float]:
    """Bits per byte if trunk and head 1, which decompression needs, count as well."""
    weights = sum(p.numel() for module in model.first_modules() for p in module.parameters())
    return {f"with {dtype}": 8 * (size + each * weights) / count for dtype, each in WEIGHTS.items()}


def speeds(model: bytemtp.ByteMTP, parts: Sequence[bytes]) -> dict[str, float]:
    """Bytes a second of this thread's processor time and bytes a pass, by way; the ways take turns, part by part.

    The front of the first part is decompressed once before, in each way: what is made or measured once is for none.
    """
    compressed = [encode(model, part).data for part in parts]
    seconds, passes = Counter[str](), Counter[str]()
    for mode in WAYS.values():
        decode(model, encode(model, parts[0][:100]).data, mode=mode)
    for part, one in zip(parts, compressed, strict=True):
        for way, mode in WAYS.items():
            begun = time.thread_time()
            coded = decode(model, one, mode=mode)
            seconds[way] += time.thread_time() - begun
            passes[way] += coded.passes
            assert coded.data == part
    size = sum(map(len, parts))
    rates = {f"{way}, bytes/s": size / seconds[way] for way in WAYS}
    return rates | {f"{way}, bytes a pass": size / passes[way] for way in WAYS}


def table(lines: Sequence[Line]) -> str:
    """Sizes, the difference that heads make to them, and speeds."""
    cells = by_cell(lines)
    columns = [*SIZES.values(), *(f"ours with the model, {dtype}" for dtype in WEIGHTS)]
    first = markdown_table([sizes(*entry) for entry in cells.items()], ["bits a byte", "seeds", *columns])
    rows = [speed(name, of_cell, way) for name, of_cell in cells.items() for way in WAYS]
    header = ["decompressing", "drafts", "bytes/s", "bytes a pass", "times one byte a pass"]
    parts = [first, markdown_table(rows, header)]
    base, *others = cells
    differences = [[f"{name} minus {base}", *paired(cells[name], cells[base], "ours", ".4f")] for name in others]
    if differences:
        parts.insert(1, markdown_table(differences, ["difference of ours, bits a byte", "seeds", "mean", "p"]))
    return "\n\n".join(parts)


def sizes(name: str, lines: Sequence[Line]) -> list[str]:
    figures = [*SIZES, *(f"with {dtype}" for dtype in WEIGHTS)]
    return [name, str(len(lines)), *(mean_and_sd([line[figure] for line in lines], ".3f") for figure in figures)]


def speed(name: str, lines: Sequence[Line], way: str) -> list[str]:
    plain = f"{next(iter(WAYS))}, bytes/s"
    times = [line[f"{way}, bytes/s"] / line[plain] for line in lines]
    return [
        name,
        way,
        f"{statistics.mean(line[f'{way}, bytes/s'] for line in lines):,.0f}",
        mean_and_sd([line[f"{way}, bytes a pass"] for line in lines], ".2f"),
        mean_and_sd(times, ".2f"),
    ]


def draw(lines: Sequence[Line]) -> Figure:
    """Sizes beside the compressors', and speeds; a dot a seed."""
    cells = by_cell(lines)
    labels = "held-out bits a byte, compressed", "decompressed bytes a second of one core"
    picture, (left, right) = frame(list(cells), labels)
    picture.set_size_inches(10, 1.6 + 0.5 * len(cells))
    for place, of_cell in enumerate(cells.values()):
        draw_dots(left, [line["ours"] for line in of_cell], place, 0)
        for number, way in enumerate(WAYS):
            draw_dots(right, [line[f"{way}, bytes/s"] for line in of_cell], place + 0.2 * (number - 1.5), number)
    for number, name in enumerate(("zstd-19", "xz-9"), 1):
        value = statistics.mean(line[name] for line in lines)
        left.axvline(value, color=COLOURS[number], linewidth=0.8, linestyle="--", label=SIZES[name])
    for number, way in enumerate(WAYS):
        right.plot([], [], "o", color=COLOURS[number], label=way)
    for axes in (left, right):
        axes.legend(fontsize=8)
    right.set_xlim(left=0)
    return picture


EXPERIMENT = Experiment("compression", score, table, draw)

if __name__ == "__main__":
    run_main(lambda: main(EXPERIMENT))

"""`bench memory`: what a training step holds, by number of heads and by length of the sequence.

Heads: sequential against joint backward, n = 1 to 32, at parity.  Length: rows of 1 KiB to 64 KiB, one document or
many.  The figures are the memory that steps add to a process that already holds the model.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from bytemtp.bench.shapes import Shape
from bytemtp.bench.turns import machine, markdown_table, measure
from bytemtp.common.runtime import log
from bytemtp.reports.figures import describe, save_picture

HEADS = (1, 2, 4, 8, 16, 32)
LENGTHS = tuple(1024 * 2**i for i in range(7))


def bench_memory(by_heads: Shape, by_length: Shape, topologies: list[str], longest: int) -> dict[str, Any]:
    """One process a point; each takes two steps after three to warm up."""
    heads = [
        dict(n=n, mode=mode, topology=topology, **_point(by_heads, n_future=n, mode=mode, topology=topology))
        for topology in topologies
        for mode in ("sequential", "joint")
        for n in HEADS
    ]
    lengths = [
        dict(seq=shape.seq, documents=documents, **_point(shape, documents=documents, n_future=8))
        for documents in (1, 16)
        for shape in (replace(by_length, seq=seq, batch=1) for seq in LENGTHS if seq <= longest)
    ]
    return {"bench": "memory", "machine": machine(), "heads": heads, "lengths": lengths}


def _point(shape: Shape, **arguments: Any) -> dict[str, Any]:
    result = measure("ours", shape, {**arguments, "steps": 2})
    log(f"{arguments} seq={shape.seq}: {result['step_memory_bytes'] / 2**20:,.0f} MiB, {result['step_s']:.2f} s")
    return result


def print_memory(report: dict[str, Any]) -> None:
    points = {(p["topology"], p["mode"], p["n"]): p["step_memory_bytes"] / 2**20 for p in report["heads"]}
    kinds = sorted({key[:2] for key in points})
    rows = [[f"{t} {m}", *(f"{points[t, m, n]:,.0f}" for n in HEADS)] for t, m in kinds]
    print(markdown_table(rows, ["step memory, MiB", *(f"n={n}" for n in HEADS)]), end="\n\n")
    rows = [
        [p["seq"], p["documents"], f"{p['step_memory_bytes'] / 2**20:,.0f}",
         f"{p['step_memory_bytes'] / p['seq'] / 1024:,.1f}", f"{p['step_s']:.2f}"]
        for p in report["lengths"]
    ]  # fmt: skip
    print(markdown_table(rows, ["sequence, bytes", "documents", "step memory, MiB", "KiB a byte", "s/step"]))


def draw_memory(report: dict[str, Any], out: Path) -> None:
    """Two panels: memory by heads, sequential and joint; memory by sequence length, log-log beside a straight line."""
    figure = Figure(figsize=(10, 4), dpi=150, layout="constrained")
    left, right = figure.subplots(1, 2)
    for kind in sorted({(p["topology"], p["mode"]) for p in report["heads"]}):
        points = [p for p in report["heads"] if (p["topology"], p["mode"]) == kind]
        style = "o-" if kind[1] == "sequential" else "s--"
        memory = [p["step_memory_bytes"] / 2**20 for p in points]
        left.plot([p["n"] for p in points], memory, style, label=" ".join(kind))
    left.set_ylim(bottom=0)
    describe(left, "heads n (same total layers)", "memory of a training step, MiB")
    for documents in sorted({p["documents"] for p in report["lengths"]}):
        points = [p for p in report["lengths"] if p["documents"] == documents]
        label = "one document a row" if documents == 1 else f"{documents} documents a row"
        right.loglog([p["seq"] for p in points], [p["step_memory_bytes"] / 2**20 for p in points], "o-", label=label)
    first = report["lengths"][0]
    line = [p["seq"] for p in report["lengths"] if p["documents"] == 1]
    scale = first["step_memory_bytes"] / 2**20 / first["seq"]
    right.loglog(line, [x * scale for x in line], ":", color="gray", label="exactly linear")
    describe(right, "sequence, bytes", "memory of a training step, MiB")
    for axis in (left, right):
        axis.legend(frameon=False)
    save_picture(figure, out)

"""Which shape of drafts is fastest on this machine: bytes a pass, as measured on files, by seconds a pass, timed here.

More drafts bring more bytes a pass and make a pass dearer, and how much dearer depends on the machine: where a pass
waits for the weights to come from memory eight ids cost as much as one, where it computes they do not.
"""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from bytemtp.common.errors import UserError
from bytemtp.decoding.generate import generate
from bytemtp.decoding.tree import Shape, chain
from bytemtp.model.model import ByteMTP

SIZES = (2, 3, 4, 6, 8, 12, 16, 24, 32)
"""Nodes of the trees that are tried."""
ROUNDS = 3
NEW = 48
"""Bytes that each shape writes for a text, in each round."""


@dataclass(frozen=True)
class Candidate:
    """A shape of drafts and what it costs and brings."""

    name: str
    shape: Shape
    options: str
    """of `python -m bytemtp.generate`"""
    bytes_per_pass: float
    seconds: float
    """of a pass, with all that is done for it"""

    @property
    def bytes_per_s(self) -> float:
        return self.bytes_per_pass / self.seconds


def is_chain(shape: Shape) -> bool:
    return shape == chain(len(shape))


def options_of(shape: Shape) -> dict[str, Any]:
    """Arguments of `generate` that decode with the shape."""
    if not shape:
        return {"mode": "ar"}
    return {"mode": "speculative", "heads": 1 + len(shape)} if is_chain(shape) else {"mode": "tree", "tree": shape}


def named(shape: Shape) -> tuple[str, str]:
    """What the shape is called, and the options of the command."""
    if not shape:
        return "no drafts", "--mode ar"
    if is_chain(shape):
        return f"chain of {len(shape)}", f"--mode speculative --heads {1 + len(shape)}"
    return f"tree, {max(map(len, shape))} deep", "--mode tree --tree FILE"


def seconds_a_pass(model: ByteMTP, texts: Sequence[bytes], shapes: Sequence[Shape]) -> list[float]:
    """Of each shape, behind the texts; the shapes take turns, and the median round counts."""
    rounds: list[list[float]] = [[] for _ in shapes]
    for _ in range(1 + ROUNDS):
        for shape, times in zip(shapes, rounds, strict=True):
            times.append(_seconds_a_pass(model, texts, options_of(shape)))
    return [statistics.median(times[1:]) for times in rounds]


def _seconds_a_pass(model: ByteMTP, texts: Sequence[bytes], options: dict[str, Any]) -> float:
    """What is read before the first byte does not count."""
    outs = [generate(model, text, NEW, **options) for text in texts]
    passes = sum(out.stats["forwards"] - 1 for out in outs)
    if not passes:
        raise UserError("the model ends all texts at once, so no pass can be timed; name longer files, or give --nodes")
    return sum(out.stats["seconds"] - out.stats["prompt_seconds"] for out in outs) / passes


def shape_table(candidates: Sequence[Candidate]) -> str:
    """A line a shape, the fastest marked."""
    best = max(candidates, key=lambda candidate: candidate.bytes_per_s)
    lines = [f"{'shape':14} {'nodes':>5}  bytes a pass  ms a pass   bytes/s"]
    for each in candidates:
        speed = f"{each.bytes_per_pass:12.3f}  {1e3 * each.seconds:9.3f}  {each.bytes_per_s:8,.0f}"
        lines.append(
            f"{each.name:14} {len(each.shape):5}  {speed}{'  fastest here: ' + each.options if each is best else ''}"
        )
    return "\n".join(lines)

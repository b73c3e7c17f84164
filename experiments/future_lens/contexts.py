"""Contexts, what a model holds at their ends, and what it writes after them.

Windows of bytes are cut from the files; a window's contexts begin where it does and end at one of ENDS.  So 8 contexts
cost one reading of 128 bytes, and each has at least 72 bytes.

Shapes:  w window, s position, e end, r context (w e), l layer (0: embedding), n bytes ahead (N in the page; 0
         is next), d width.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor

import bytemtp
from bytemtp import ByteMTP
from bytemtp.common.errors import UserError
from bytemtp.common.vocab import EOT
from experiments.future_lens.branches import Branches, begin

AHEAD = 8
"""Bytes that are written after a context."""
WINDOW = 128
ENDS = tuple(range(71, WINDOW, 8))
"""Position of a context's last byte in its window."""
SEED = 0
"""Of everything that is drawn here and in the probes, the same for all cells; --seeds are those of the trainings."""
WINDOWS_A_PASS = 32


@dataclass(frozen=True)
class Contexts:
    """What is known of some contexts."""

    states: Float[Tensor, "r l d"]
    """of the last byte, at each layer"""
    later: Float[Tensor, "r n d"]
    """behind the last layer, from which head 1 reads the byte n ahead"""
    written: Int[Tensor, "r n"]
    """what the model writes greedily, each byte read by it in turn; the targets"""
    last: Int[Tensor, " r"]
    """the last byte itself"""


def windows(path: str, contexts: int) -> Int[Tensor, "w s"]:
    """For so many contexts, drawn from the files; no document ends in them.  UserError if there are too few."""
    wanted = math.ceil(contexts / len(ENDS))
    found: list[Tensor] = []
    with bytemtp.stream(path, WINDOW, 64, SEED, n_future=1) as batches:
        for batch in batches:
            rows = batch.ids[:, :WINDOW]
            found += rows[(rows != EOT).all(1)]
            if len(found) >= wanted:
                return torch.stack(found[:wanted])
    raise UserError(f"{path} has {len(found)} windows of {WINDOW} bytes inside documents; {wanted} are needed")


@torch.no_grad()
def read(model: ByteMTP, rows: Int[Tensor, "w s"], ends: Sequence[int] = ENDS) -> Contexts:
    parts = [read_some(model, some, torch.tensor(ends, device=model.device)) for some in passes(model, rows)]
    return Contexts(*(torch.cat([getattr(part, field.name) for part in parts]) for field in fields(Contexts)))


def read_some(model: ByteMTP, rows: Int[Tensor, "w s"], ends: Int[Tensor, " e"]) -> Contexts:
    states, shared = begin(model, model.embed(rows))
    visible = torch.arange(rows.shape[1], device=rows.device) <= ends[:, None]
    written, later = Branches(model, shared, visible, ends + 1).write(states[-1][:, ends], AHEAD)
    return Contexts(
        rearrange([state[:, ends] for state in states], "l w e d -> (w e) l d"),
        rearrange(later, "n w e d -> (w e) n d"),
        rearrange(written, "n w e -> (w e) n"),
        rows[:, ends].flatten(),
    )


@torch.no_grad()
def drafts(model: ByteMTP, rows: Int[Tensor, "w s"], ends: Sequence[int] = ENDS) -> Int[Tensor, "r 1 n"]:
    """What the model's own heads say at the end of each context; n is the number of heads, AHEAD at most."""
    said = [model(some)[:AHEAD, :, list(ends)].argmax(-1) for some in passes(model, rows)]
    return rearrange(torch.cat(said, 1), "n w e -> (w e) 1 n")


def passes(model: ByteMTP, rows: Int[Tensor, "w s"]) -> Iterator[Int[Tensor, "v s"]]:
    return (some.to(model.device) for some in rows.split(WINDOWS_A_PASS))

"""What an engine is: a model with its KV cache, run in pieces, on which the verify loop and the drafters build.

    verify      trunk and head 1 on c new ids: logits of what follows each of them
    keep_path   after a tree of drafts: the accepted path moves to the front of the cache, the rest is given up
    drafts      heads 2 to k at the last accepted id: logits of what may follow beyond the next id
    copy_row    what one row has read, another has, too

Engines hold caches but no text: the caller owns the ids.  Try one by itself:

    engine = make_engine("torch", model, rows=1, capacity=64)              # engines/select.py
    logits = engine.verify(np.array([0]), np.array([[EOT, 97, 98]]), np.array([3]))

Shapes:  b rows, c ids of a chunk, a accepted ids, n length of the id buffer, v vocabulary.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool, Float32, Int


@dataclass(frozen=True)
class Branches:
    """Drafts as a tree behind the pending ids of each row; the chunk's ids stand in the order pending, drafts."""

    depth: Int[np.ndarray, "b c"]
    """position of each id, counted from the row's first pending one"""
    ancestors: Bool[np.ndarray, "b c c"]
    """whether an id has another one of the chunk among its ancestors or is itself it"""


@runtime_checkable
class Engine(Protocol):
    """A model with its caches, for b rows of ids."""

    def verify(
        self,
        start: Int[np.ndarray, " b"],
        ids: Int[np.ndarray, "b c"],
        lengths: Int[np.ndarray, " b"],
        branches: Branches | None = None,
    ) -> Float32[np.ndarray, "b c v"]:
        """Append the first `lengths` of the ids from slot `start` of each row on; logits of the id after each of them.

        Without branches the ids follow one another.  Otherwise `keep_path` must be called next.  To give up what was
        appended, start before it: at most `ring.STEP_BACK` ids (and as many more as the engine was made to keep) before
        the last pass's start.
        """

    def keep_path(self, start: Int[np.ndarray, " b"], path: Int[np.ndarray, "b a"]) -> None:
        """Of the last chunk, move the ids at these places to the front; what lies behind them is given up."""

    def drafts(
        self, start: Int[np.ndarray, " b"], accepted: Int[np.ndarray, " b"], heads: int, ids: Int[np.ndarray, "b n"]
    ) -> Iterator[Float32[np.ndarray, "b v"]]:
        """Logits of heads 2, 3, ... `heads` in turn, at the last of the first `accepted` ids of the last chunk, without
        the model's transitions, which `HeadDrafter` adds.

        ids: the caller's buffer of known ids and, behind them, drafts; an engine only reads it.  `deepseek` heads do:
        head i + 1 at position p reads ids p + 1 to p + i.  So the id after the accepted ones (position start +
        accepted) must be there at the start, and before the caller asks for the logits after the i-th (from 1), it
        writes the id that it drafted from them, at position start + accepted + i.

        The iterator has to be exhausted: that is what brings the heads' caches up to date, also where nothing is
        drafted.  The logits of rows that accepted none are of no meaning.
        """

    def copy_row(self, source: int, to: int) -> None:
        """Make the caches of a row those of another."""

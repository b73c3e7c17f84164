"""Drafters guess the next ids, for the verify loop to check: the model's own heads, or another, smaller model.

A drafter gives logits, one depth after the other; the loop chooses ids from them.  So what is drafted (one id or
several, likeliest or drawn, only well-formed UTF-8) is the same for all drafters.

Sources: drafts by the model's own heads (Stern et al. 2018), by another model (Leviathan et al. 2023).
Try:  bytemtp.generate(model, b"def ", 100, mode="draft", draft=other_model)
Shapes:  b rows, c ids of a chunk, n length of the id buffer, h drafting heads, v vocabulary.
"""

from collections.abc import Iterator, Sequence
from typing import Protocol

import numpy as np
from jaxtyping import Float, Float32, Int
from torch import Tensor

from bytemtp.decoding.engines.engine import Engine
from bytemtp.decoding.engines.native.engine import NativeEngine
from bytemtp.decoding.tree import DraftTree


class Drafter(Protocol):
    """Methods but `begin_row` follow a verifying pass over the ids from `start` on, of which the text took `accepted`.

    ids: the loop's buffer, known ids and then drafts.  A drafter only reads it.
    """

    def drafts(
        self, start: Int[np.ndarray, " b"], accepted: Int[np.ndarray, " b"], ids: Int[np.ndarray, "b n"]
    ) -> Iterator[Float32[np.ndarray, "b v"]]:
        """Logits of the drafts at depth 1, 2, ... beyond the next id, which stands at start + accepted.

        Before asking for the next, the caller writes the best draft at depth i to position start + accepted + i.  The
        iterator has to be exhausted.  The logits of rows that want no draft are of no meaning.
        """

    def all_drafts(
        self, start: Int[np.ndarray, " b"], accepted: Int[np.ndarray, " b"]
    ) -> Float32[np.ndarray, "b h v"] | None:
        """What `drafts` gives in turn, if it does not depend on the ids (else None) and some row accepted one."""

    def follow(
        self, start: Int[np.ndarray, " b"], accepted: Int[np.ndarray, " b"], ids: Int[np.ndarray, "b n"]
    ) -> None:
        """Read a piece of the prompt."""

    def begin_row(self, row: int, source: int, count: int) -> None:
        """A new text in this row, whose first `count` ids are those of the row `source`."""


class HeadDrafter:
    """Drafts by heads 2 to `heads` of the verifying model itself, from the hidden states of the verifying pass.

    transitions: the model's.
    """

    def __init__(self, engine: Engine, heads: int, transitions: Float[Tensor, "h v v"] | None = None) -> None:
        self.engine, self.heads = engine, heads
        self.transitions = None if transitions is None else transitions.detach().float().cpu().numpy()

    def drafts(
        self, start: Int[np.ndarray, " b"], accepted: Int[np.ndarray, " b"], ids: Int[np.ndarray, "b n"]
    ) -> Iterator[Float32[np.ndarray, "b v"]]:
        row = np.arange(len(start))
        for i, logits in enumerate(self.engine.drafts(start, accepted, self.heads, ids)):
            if self.transitions is None:
                yield logits
            else:  # by the id that head 1 gave, then by each one that the caller has drafted meanwhile
                yield logits + self.transitions[i, ids[row, start + accepted + i]]

    def all_drafts(
        self, start: Int[np.ndarray, " b"], accepted: Int[np.ndarray, " b"]
    ) -> Float32[np.ndarray, "b h v"] | None:
        if self.transitions is None and isinstance(self.engine, NativeEngine) and self.engine.drafts_at_once:
            return self.engine.all_drafts(start, accepted, self.heads)
        return None

    def follow(
        self, start: Int[np.ndarray, " b"], accepted: Int[np.ndarray, " b"], ids: Int[np.ndarray, "b n"]
    ) -> None:
        for _ in self.drafts(start, accepted, ids):  # brings the heads' caches up to date
            pass

    def begin_row(self, row: int, source: int, count: int) -> None:
        """The engine is the loop's, which has copied the row."""


class ModelDrafter:
    """Drafts by another model's head 1, one pass of its own for each depth."""

    def __init__(self, engine: Engine, trees: Sequence[DraftTree]) -> None:
        self.engine, self.trees = engine, trees
        self.read = np.zeros(len(trees), dtype=np.int64)
        """ids of each row that the model has in its cache, its own drafts not counted"""

    def drafts(
        self, start: Int[np.ndarray, " b"], accepted: Int[np.ndarray, " b"], ids: Int[np.ndarray, "b n"]
    ) -> Iterator[Float32[np.ndarray, "b v"]]:
        known, read = start + accepted + 1, self.read
        for depth in range(1, 1 + max((tree.depth for tree in self.trees), default=0)):
            pending = (known + depth - 1 - read) * np.array([tree.wants(depth) for tree in self.trees])
            if not pending.any():
                break
            logits = self.engine.verify(read, ids_from(ids, read, pending), pending)
            yield logits[np.arange(len(pending)), pending - 1]
            read = read + pending
        self.read = np.minimum(read, known)

    def all_drafts(
        self, start: Int[np.ndarray, " b"], accepted: Int[np.ndarray, " b"]
    ) -> Float32[np.ndarray, "b h v"] | None:
        return None

    def follow(
        self, start: Int[np.ndarray, " b"], accepted: Int[np.ndarray, " b"], ids: Int[np.ndarray, "b n"]
    ) -> None:
        self.engine.verify(start, ids_from(ids, start, accepted), accepted)
        self.read = np.where(accepted > 0, start + accepted, self.read)

    def begin_row(self, row: int, source: int, count: int) -> None:
        if row != source:
            self.engine.copy_row(source, row)
        self.read[row] = min(self.read[source], count)


def ids_from(
    ids: Int[np.ndarray, "b n"], start: Int[np.ndarray, " b"], lengths: Int[np.ndarray, " b"]
) -> Int[np.ndarray, "b c"]:
    """Of each row of the buffer as many ids from `start` on as the longest of the `lengths` says."""
    places = start[:, None] + np.arange(int(lengths.max()))
    return np.take_along_axis(ids, np.minimum(places, ids.shape[1] - 1), 1)

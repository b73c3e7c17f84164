"""Drafts that are copied, and chains of drafts that are copied or the heads', whichever pays (mode "auto").

Shapes:  v vocabulary.
"""

import numpy as np
from jaxtyping import Float, Float64

from bytemtp.common.vocab import PADDED_VOCAB_SIZE
from bytemtp.decoding.chooser import Chooser
from bytemtp.decoding.copies import Copies
from bytemtp.decoding.row import Row
from bytemtp.decoding.sampling import masked, sample_id, top_candidates
from bytemtp.decoding.tree import Draft, DraftTree, Shape, chain


class CopiedChain(DraftTree):
    """Up to `most` bytes that followed the text's end where it stood before."""

    def __init__(self, row: Row, copies: Copies, most: int, shape: Shape = ()) -> None:
        super().__init__(row, shape, "copies")
        self.copies, self.most, self.read = copies, most, 0
        copies.extend(row.prompt)

    def begin(self) -> None:
        super().begin()
        if self.row.stopped_by:  # its batch mates go on
            return
        self.copies.extend(bytes(self.row.data[self.read :]))
        self.read = len(self.row.data)
        match, copied = self.copies.continuation(min(self.most, self.row.left - 1))
        for id_ in copied[: self.count(match, len(copied))]:
            self._append(id_, None if self.row.rule.temperature == 0 else certain(id_))

    def count(self, match: int, offered: int) -> int:
        """How many of the offered bytes to draft, which followed where the last `match` bytes stood before."""
        return offered

    def _append(self, id_: int, q: Float64[np.ndarray, " v"] | None) -> None:
        depth = 1 + len(self.drafts)
        self.drafts.append(Draft(id_, q, depth - 2, (0,) * depth))


class AutoChain(CopiedChain):
    """A chain whose source and length a `Chooser` finds."""

    def __init__(self, row: Row, copies: Copies, most: int, chooser: Chooser) -> None:
        super().__init__(row, copies, most, chain(chooser.depth))
        self.chooser = chooser
        self._reset()

    def _reset(self) -> None:
        self.match, self.chance = 0, 1.0
        self.is_looking = self.is_asking = self.is_open = False
        self.probabilities: list[float] = []
        """that the heads gave to their drafts"""

    def follows(self) -> bool:
        return self.chooser.wants_heads() and not self.chooser.may_rest

    def begin(self) -> None:
        self._reset()
        self.is_looking = self.chooser.drafting.is_due()
        if not self.is_looking:
            self.drafts.clear()
            return
        super().begin()
        self.source = "copies" if self.drafts else "heads"
        self.is_asking = self.is_open = not self.drafts and self.chooser.wants_heads()

    def count(self, match: int, offered: int) -> int:
        self.match = match
        return self.chooser.copies(match, offered, index=self.copies.is_from_index)

    def wants(self, depth: int) -> bool:
        return self.is_open and super().wants(depth)

    def grow(self, depth: int, logits: Float[np.ndarray, " v"]) -> int | None:
        """Draft one id more, if it is worth its place."""
        row, greedy = self.row, self.row.rule.temperature == 0
        legal = row.legal([draft.id for draft in self.drafts])
        q = None if greedy else row.rule.distribution(logits, legal)
        probability = largest_probability(masked(logits, legal)) if q is None else float(q.max())
        self.chance *= self.chooser.head_right(depth, probability)
        self.is_open = self.chooser.is_worth(depth, self.chance)
        if not self.is_open:
            return None
        id_ = top_candidates(logits, legal, 1)[0] if q is None else sample_id(q, row.random.random())
        self.probabilities.append(probability)
        self._append(id_, q)
        return id_

    def learn(self, accepted: int) -> None:
        if not self.row.stopped_by:  # else the draft behind the last one that stays was not looked at
            self.chooser.learn(
                accepted,
                len(self.drafts) if self.source == "copies" else 0,
                self.match,
                self.probabilities,
                asked=self.is_asking,
                looked=self.is_looking,
                index=self.copies.is_from_index,
            )


def certain(id_: int) -> Float64[np.ndarray, " v"]:
    """The distribution that holds nothing but an id."""
    q = np.zeros(PADDED_VOCAB_SIZE)
    q[id_] = 1.0
    return q


def largest_probability(logits: Float[np.ndarray, " v"]) -> float:
    return float(1 / np.exp(logits - logits.max()).sum())

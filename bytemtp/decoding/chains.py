"""Chains of drafts: the heads', copied ones, and those of mode "auto", which are whichever pays.

Shapes:  c drafts of a pass, h drafting heads, v vocabulary.
"""

from collections.abc import Iterable

import numpy as np
from jaxtyping import Float, Float64

from bytemtp.decoding.chooser import Chooser
from bytemtp.decoding.copies import Copies
from bytemtp.decoding.row import Row
from bytemtp.decoding.sampling import NUMPY, Draws, masked
from bytemtp.decoding.tree import Draft, DraftTree, chain


class Chain(DraftTree):
    """Drafts one behind another."""

    def __init__(self, row: Row, length: int, source: str = "heads", draws: Draws = NUMPY) -> None:
        super().__init__(row, chain(length), source)
        self.draws = draws
        self.laws: Float64[np.ndarray, "c v"] | list[Float64[np.ndarray, " v"]] = []
        """what each was drawn from; none if they were not drawn"""

    def begin(self) -> None:
        super().begin()
        self.laws = []

    def children(self, parent: int) -> list[int]:
        return [parent + 1] if parent + 1 < len(self.drafts) else []

    def grow(self, depth: int, logits: Float[np.ndarray, " v"]) -> int | None:
        """Draft one id more, if it is worth its place."""
        return next(iter(self._grow(depth, logits[None])), None)

    def grow_all(self, logits: Float[np.ndarray, "h v"]) -> None:
        """At once, unless what may follow depends on each draft."""
        if self.row.utf8_state is not None:
            super().grow_all(logits)
        elif self.wants(1):
            self._grow(1, logits[: min(self.depth, self.row.left - 1)])

    def _grow(self, depth: int, logits: Float[np.ndarray, "h v"]) -> list[int]:
        """Draft the ids from that depth on that are worth their places."""
        row, temperature = self.row, self.row.rule.temperature
        draws = self.draws
        if row.utf8_state is not None:
            draws, logits = NUMPY, masked(logits, row.legal([draft.id for draft in self.drafts]))
        if temperature == 0:
            ids = logits[: self.worth(depth, logits)].argmax(-1).tolist()
        else:
            q = row.rule.cut(draws.softmax(logits, temperature))
            q = q[: self.worth(depth, q)]
            ids = draws.sample_ids(q, [row.random.random() for _ in q]) if len(q) else []
            self.laws = q if depth == 1 else [*self.laws, *q]
        self._append(ids)
        return ids

    def worth(self, depth: int, drawn_from: Float[np.ndarray, "h v"]) -> int:
        """How many to draft from that depth on: of these distributions, or logits where decoding is greedy."""
        return len(drawn_from)

    def _append(self, ids: Iterable[int]) -> None:
        for depth, id_ in enumerate(ids, 1 + len(self.drafts)):
            self.drafts.append(Draft(id_, None, depth - 2, (0,) * depth))


class CopiedChain(Chain):
    """Up to `most` bytes that followed the text's end where it stood before."""

    def __init__(self, row: Row, copies: Copies, most: int, length: int = 0, draws: Draws = NUMPY) -> None:
        super().__init__(row, length, "copies", draws)
        self.copies, self.most, self.read = copies, most, 0
        copies.extend(row.prompt)

    def begin(self) -> None:
        super().begin()
        if self.row.stopped_by:  # its batch mates go on
            return
        self.copies.extend(bytes(self.row.data[self.read :]))
        self.read = len(self.row.data)
        match, copied = self.copies.continuation(min(self.most, self.row.left - 1))
        self._append(copied[: self.count(match, len(copied))])

    def count(self, match: int, offered: int) -> int:
        """How many of the offered bytes to draft, which followed where the last `match` bytes stood before."""
        return offered


class AutoChain(CopiedChain):
    """A chain whose source and length a `Chooser` finds."""

    def __init__(self, row: Row, copies: Copies, most: int, chooser: Chooser, draws: Draws = NUMPY) -> None:
        super().__init__(row, copies, most, chooser.depth, draws)
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
            Chain.begin(self)
            return
        super().begin()
        self.source = "copies" if self.drafts else "heads"
        self.is_asking = self.is_open = not self.drafts and self.chooser.wants_heads()

    def count(self, match: int, offered: int) -> int:
        self.match = match
        return self.chooser.copies(match, offered, index=self.copies.is_from_index)

    def wants(self, depth: int) -> bool:
        return self.is_open and super().wants(depth)

    def worth(self, depth: int, drawn_from: Float[np.ndarray, "h v"]) -> int:
        """As many as the chooser says; then the chain is closed."""
        laws = self.draws.softmax(drawn_from, 1.0) if self.row.rule.temperature == 0 else drawn_from
        for number, probability in enumerate(laws.max(-1).tolist()):
            self.chance *= self.chooser.head_right(depth + number, probability)
            self.is_open = self.chooser.is_worth(depth + number, self.chance)
            if not self.is_open:
                return number
            self.probabilities.append(probability)
        return len(laws)

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

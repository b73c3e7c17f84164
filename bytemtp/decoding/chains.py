"""Chains of drafts: the heads', copied ones, and those of mode "auto", which are whichever pays.

Shapes:  c drafts of a pass, h drafting heads, v vocabulary.
"""

from collections.abc import Iterable, Sequence

import numpy as np
from jaxtyping import Float, Float64

from bytemtp.decoding.chooser import Chooser
from bytemtp.decoding.copies import Copies
from bytemtp.decoding.row import Row
from bytemtp.decoding.sampling import NUMPY, Draws, masked
from bytemtp.decoding.tree import Draft, DraftTree, chain
from bytemtp.decoding.verdicts import check_finite

PATHS = chain(64)
"""Of drafts by depth."""


class Chain(DraftTree):
    """Drafts one behind another."""

    def __init__(self, row: Row, length: int, source: str = "heads", draws: Draws = NUMPY) -> None:
        super().__init__(row, chain(length), source)
        self.draws = draws
        self.laws: Float64[np.ndarray, "c v"] | list[Float64[np.ndarray, " v"]] = []
        """what each was drawn from; none if they were not drawn"""
        self.read = 0
        """bytes of the row that what they are copied from has taken in"""

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
        if temperature:
            check_finite(logits)  # greedily a draft of any id is as good as no draft
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

    def resume(self, ids: Sequence[int], laws: Float64[np.ndarray, "c v"], source: str) -> None:
        """These are the drafts for the next pass: they, and all that the row has, were read elsewhere."""
        check_finite(laws)
        self.drafts.clear()
        self._append(ids)
        self.laws, self.read = laws, len(self.row.data)
        if ids:
            self.source = source

    def _append(self, ids: Iterable[int]) -> None:
        begin = len(self.drafts)
        self.drafts += [Draft(id_, None, depth - 1, PATHS[depth]) for depth, id_ in enumerate(ids, begin)]


class CopiedChain(Chain):
    """Up to `most` bytes that followed the text's end where it stood before."""

    def __init__(self, row: Row, copies: Copies, most: int, draws: Draws = NUMPY) -> None:
        super().__init__(row, 0, "copies", draws)
        self.copies, self.most = copies, most
        copies.extend(row.prompt)

    def begin(self) -> None:
        super().begin()
        if not self.row.stopped_by:  # else its batch mates go on
            self.copies.extend(bytes(self.row.data[self.read :]))
            self.read = len(self.row.data)
            self._append(self.copies.continuation(min(self.most, self.row.left - 1))[1])


class AutoChain(Chain):
    """A chain whose source and length a `Chooser` finds: `most` copied bytes at most, or drafts of the heads."""

    def __init__(self, row: Row, chooser: Chooser, most: int, draws: Draws = NUMPY) -> None:
        super().__init__(row, chooser.depth, draws=draws)
        self.chooser, self.most = chooser, most
        self.is_open, self.accepted = False, 0
        chooser.text.extend(row.prompt)

    def follows(self) -> bool:
        return not self.row.stopped_by and self.chooser.follows

    def begin(self) -> None:
        super().begin()
        self.is_open = False
        if not self.row.stopped_by:
            new, most = bytes(self.row.data[self.read :]), min(self.most, self.row.left - 1)
            copied = self.chooser.begin(self.accepted, new, most)
            self.read += len(new)
            self.source = "copies" if copied else "heads"
            if copied:
                self._append(copied)
            self.is_open = self.chooser.asks

    def wants(self, depth: int) -> bool:
        return self.is_open and super().wants(depth)

    def worth(self, depth: int, drawn_from: Float[np.ndarray, "h v"]) -> int:
        """As many as the chooser says; then the chain is closed."""
        number = self.chooser.worth(depth, drawn_from, are_logits=self.row.rule.temperature == 0)
        self.is_open = number == len(drawn_from)
        return number

    def learn(self, accepted: int) -> None:
        self.accepted = accepted

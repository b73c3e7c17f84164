"""What the verifying head says after the decided ids of a row, and after each of its drafts.

Shapes:  c places: 0 is behind the decided ids, the others behind the drafts; v vocabulary.
"""

import numpy as np
from jaxtyping import Float, Float32, Float64

from bytemtp.common.errors import UserError
from bytemtp.common.vocab import VOCAB_SIZE
from bytemtp.decoding.row import Row
from bytemtp.decoding.sampling import NUMPY, Draws, masked, top_two

MARGIN = 2e-5
"""Smallest lead of the best logit over the second that is trusted, as a share of the largest logit: that is what
float32 errs in proportion to, on our models by a tenth of this at most (a test measures it)."""


def check_finite(logits: Float[np.ndarray, "c v"]) -> None:
    """UserError unless all are; or all probabilities that were made of them."""
    if not np.isfinite(logits[:, :VOCAB_SIZE]).all():
        raise UserError("the model's logits are not finite: its weights are damaged; use another checkpoint")


class Verdicts:
    """What head 1 says after a row's decided ids (place 0), and after each of its drafts."""

    def __init__(self, row: Row, logits: Float32[np.ndarray, "c v"], draws: Draws = NUMPY) -> None:
        self.row, self.logits = row, logits
        self.greedy = row.rule.temperature == 0
        check_finite(logits)
        if row.utf8_state is not None:
            return
        if self.greedy:
            self.best, self.certain = draws.leads(logits, MARGIN)
        else:
            self.distributions = row.rule.cut(draws.softmax(logits, row.rule.temperature))

    def argmax(self, place: int) -> tuple[int, bool]:
        """The likeliest id, and whether its lead over the second is wide enough to be trusted."""
        mask = self.row.legal()
        if mask is None:
            return self.best[place], self.certain[place]
        (id_,), (lead,) = top_two(masked(self.logits[place], mask)[None])
        return id_, bool(lead >= MARGIN * np.abs(self.logits[place, :VOCAB_SIZE]).max())

    def distribution(self, place: int) -> Float64[np.ndarray, " v"]:
        mask = self.row.legal()
        return self.distributions[place] if mask is None else self.row.rule.distribution(self.logits[place], mask)

    def along(self, ids: list[int]) -> Float64[np.ndarray, "c v"]:
        """All distributions, where the drafts are a chain of these ids."""
        if self.row.utf8_state is None:
            return self.distributions
        masks = [self.row.legal(ids[:place]) for place in range(len(self.logits))]
        return np.stack([self.row.rule.distribution(x, mask) for x, mask in zip(self.logits, masks, strict=True)])

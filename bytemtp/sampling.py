"""From logits to a distribution, once; everything after it takes probabilities.  And the rule that keeps the law.

`Rule.distribution` is applied to the verifying head's logits, giving p, and to each draft's, giving q, so the q in the
acceptance ratio is the q that was drawn from.  A draft x ~ q is kept with probability min(1, p(x) / q(x)), otherwise
replaced by a draw from max(p - q, 0), normalised: the result has law p for any q (Leviathan et al. 2023, Chen et al.
2023).  Greedy decoding is the same rule with one-hot p and q.

Shapes:  v vocabulary (padded to 264).
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from random import Random

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from bytemtp.errors import UserError


@dataclass(frozen=True)
class Rule:
    """How the next id is drawn."""

    temperature: float = 0.0
    """0 takes the likeliest id"""
    top_k: int = 0
    """only the k likeliest ids; 0 means all"""
    top_p: float = 1.0
    """only the likeliest ids that together have this probability"""

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < math.inf:
            raise UserError(f"temperature is {self.temperature}; it must be 0 (greedy) or more")
        if self.top_k < 0:
            raise UserError(f"top_k is {self.top_k}; it must be 0 (all ids) or more")
        if not 0 < self.top_p <= 1:
            raise UserError(f"top_p is {self.top_p}; it must be above 0 and at most 1")

    def distribution(self, logits: Float[Tensor, " v"], legal: Bool[Tensor, " v"] | None = None) -> Float[Tensor, " v"]:
        """Probabilities in float64: legal ids only, then temperature, then top-k, then top-p."""
        logits = logits.double()
        if legal is not None:
            logits = logits.masked_fill(~legal, -torch.inf)
        if self.temperature == 0:
            return torch.zeros_like(logits).index_fill_(0, logits.argmax(), 1.0)
        probabilities = (logits / self.temperature).softmax(-1)
        if self.top_k or self.top_p < 1:
            probabilities = self._cut(probabilities)
        return probabilities

    def _cut(self, probabilities: Tensor) -> Tensor:
        """Ids in falling order; equal ones in the order of their numbers."""
        ordered, ids = probabilities.sort(descending=True, stable=True)
        before = ordered.cumsum(-1) - ordered
        kept = before < self.top_p
        if self.top_k:
            kept &= torch.arange(len(ordered), device=ordered.device) < self.top_k
        cut = torch.zeros_like(probabilities).scatter(0, ids, ordered * kept)
        return cut / cut.sum()


def draw(probabilities: Float[Tensor, " v"], uniform: float) -> int:
    """The id at `uniform` in [0, 1) of the cumulative distribution; never one of probability 0."""
    cumulative = probabilities.cumsum(-1)
    index = torch.searchsorted(cumulative, uniform * cumulative[-1], right=True)
    return int(index.clamp_max(int(probabilities.nonzero()[-1])))


def acceptance(p: Float[Tensor, " v"], q: Float[Tensor, " v"], draft: int) -> float:
    """Probability of keeping a draft that was drawn from q."""
    return min(1.0, float(p[draft] / q[draft]))


def candidates(
    rule: Rule, logits: Float[Tensor, " v"], legal: Bool[Tensor, " v"] | None, count: int, random: Random
) -> Iterator[tuple[int, Float[Tensor, " v"]]]:
    """Up to `count` different ids to draft, each with the law that it was drawn from.

    Greedy: the likeliest ids, each with a law that has no other.  Otherwise draws without replacement.
    """
    if legal is not None:
        logits = logits.masked_fill(~legal, -torch.inf)
    if rule.temperature == 0:
        best = logits.topk(count)
        for id_ in best.indices[best.values > -torch.inf].tolist():
            yield id_, torch.zeros_like(logits, dtype=torch.float64).index_fill_(0, torch.tensor(id_), 1.0)
        return
    law = rule.distribution(logits)
    for _ in range(min(count, int((law > 0).sum()))):
        id_ = draw(law, random.random())
        yield id_, law
        law = law.index_fill(0, torch.tensor(id_), 0.0)
        law = law / law.sum()


def residual(p: Float[Tensor, " v"], q: Float[Tensor, " v"]) -> Float[Tensor, " v"]:
    """What is drawn from after a draft was refused: the part of p that q falls short of."""
    rest = (p - q).clamp_min(0)
    total = rest.sum()
    # p = q but for rounding: refusing was itself a rounding error, and any draw from p is right.
    return rest / total if total > 0 else p

"""From logits to a distribution, and speculative sampling: drafts are verified so that the distribution stays the same.

`Rule.distribution` is applied to the verifying head's logits, giving p, and to each draft's, giving q, so the q in the
acceptance ratio is the q that was drawn from.  A draft x ~ q is kept with probability min(1, p(x) / q(x)), otherwise
replaced by a draw from max(p - q, 0), normalised: the result is distributed as p for any q (Leviathan et al. 2023, Chen
et al. 2023).  Greedy decoding is the same rule with one-hot p and q.  A chain of drafts is better judged as a whole:
`verify_chain` keeps as many of them as any rule can that leaves the distribution as it is.

    p = Rule(temperature=0.8, top_p=0.95).distribution(logits)
    number, id_ = verify_siblings(p, [(draft, q)], Random(0))              # number 0: the draft was kept; None: refused
    stay, id_ = verify_chain(p, drafts, q, Random(0))                      # the first `stay` drafts, then id_

Shapes:  v vocabulary (padded to 264), l positions whose distributions are made at once; c drafts of a chain, and
c1 = c + 1 places behind them.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from random import Random

import numpy as np
from jaxtyping import Bool, Float, Float64

from bytemtp.common.errors import UserError
from bytemtp.common.vocab import VOCAB_SIZE


@dataclass(frozen=True)
class Rule:
    """How the next id is drawn."""

    temperature: float = 0.0
    """0 takes the likeliest id"""
    top_k: int = 0
    """only the k likeliest ids; 0 means all"""
    top_p: float = 1.0
    """only the likeliest of these ids that together have this share of their probability"""

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < math.inf:
            raise UserError(f"temperature is {self.temperature}; it must be 0 (greedy) or more")
        if self.top_k < 0:
            raise UserError(f"top_k is {self.top_k}; it must be 0 (all ids) or more")
        if not 0 < self.top_p <= 1:
            raise UserError(f"top_p is {self.top_p}; it must be above 0 and at most 1")

    @property
    def cuts(self) -> bool:
        """Whether there may be ids that are never drawn."""
        return self.temperature > 0 and (self.top_k > 0 or self.top_p < 1)

    def distribution(
        self, logits: Float[np.ndarray, "*l v"], legal: Bool[np.ndarray, " v"] | None = None
    ) -> Float64[np.ndarray, "*l v"]:
        """Probabilities in float64: legal ids only, then temperature, then top-k, then top-p of what is left."""
        logits = masked(logits, legal)
        if self.temperature == 0:
            return (np.arange(logits.shape[-1]) == logits.argmax(-1)[..., None]).astype(np.float64)
        return self.cut(softmax(logits, self.temperature))

    def cut(self, probabilities: Float64[np.ndarray, "*l v"]) -> Float64[np.ndarray, "*l v"]:
        """What top-k and top-p leave of them: equal ones in the order of their ids, top_p of what top_k leaves."""
        if not self.cuts:
            return probabilities
        ids = np.argsort(-probabilities, axis=-1, kind="stable")
        ordered = np.take_along_axis(probabilities, ids, -1)
        if self.top_k:
            ordered[..., self.top_k :] = 0
        if self.top_p < 1:
            before = (ordered.cumsum(-1) - ordered) / ordered.sum(-1, keepdims=True)
            ordered[before >= self.top_p] = 0
        cut = np.zeros_like(probabilities)
        np.put_along_axis(cut, ids, ordered, -1)
        return cut / cut.sum(-1, keepdims=True)


def softmax(logits: Float[np.ndarray, "*l v"], temperature: float) -> Float64[np.ndarray, "*l v"]:
    logits = logits.astype(np.float64)
    with np.errstate(over="ignore"):  # a temperature near 0 makes it -inf, and the odds 0
        odds = np.exp((logits - logits.max(-1, keepdims=True)) / temperature)
    return odds / odds.sum(-1, keepdims=True)


def masked(logits: Float[np.ndarray, "*l v"], legal: Bool[np.ndarray, " v"] | None) -> Float[np.ndarray, "*l v"]:
    return logits if legal is None else np.where(legal, logits, -np.inf).astype(logits.dtype)


def top_two(logits: Float[np.ndarray, "l v"]) -> tuple[list[int], list[float]]:
    """At each position the likeliest id, and its lead over the second."""
    best = np.partition(logits, -2, axis=-1)[:, -2:]
    return logits.argmax(-1).tolist(), (best[:, 1] - best[:, 0]).tolist()


def sample_id(probabilities: Float64[np.ndarray, " v"], uniform: float) -> int:
    """The id at `uniform` in [0, 1) of the cumulative distribution; never one of probability 0."""
    cumulative = probabilities.cumsum()
    index = int(cumulative.searchsorted(uniform * cumulative[-1], side="right"))
    return index if index < len(probabilities) else int(probabilities.nonzero()[0][-1])


def acceptance(p: Float64[np.ndarray, " v"], q: Float64[np.ndarray, " v"], draft: int) -> float:
    """Probability of keeping a draft that was drawn from q."""
    return min(1.0, float(p[draft] / q[draft]))


def sample_candidates(
    rule: Rule, logits: Float[np.ndarray, " v"], legal: Bool[np.ndarray, " v"] | None, count: int, random: Random
) -> Iterator[tuple[int, Float64[np.ndarray, " v"]]]:
    """Up to `count` different ids to draft, drawn without replacement, each with the distribution it was drawn from."""
    q = rule.distribution(logits, legal)
    for _ in range(min(count, int((q > 0).sum()))):
        id_ = sample_id(q, random.random())
        yield id_, q
        if count > 1:
            q = q.copy()
            q[id_] = 0.0
            q = q / q.sum() if q.any() else q


def top_candidates(logits: Float[np.ndarray, " v"], legal: Bool[np.ndarray, " v"] | None, count: int) -> list[int]:
    """Up to `count` different ids to draft when decoding is greedy, best first."""
    logits = masked(logits, legal)
    if count == 1:
        return [int(logits.argmax())]
    ids = np.argsort(-logits, kind="stable")[:count]
    return [int(id_) for id_ in ids if logits[id_] > -np.inf]


def residual(p: Float64[np.ndarray, " v"], q: Float64[np.ndarray, " v"]) -> Float64[np.ndarray, " v"]:
    """What is drawn from after a draft was refused: the part of p that q falls short of."""
    rest = np.maximum(p - q, 0)
    total = rest.sum()
    # p = q but for rounding: refusing was itself a rounding error, and any draw from p is right.
    return rest / total if total > 0 else p


def verify_siblings(
    p: Float64[np.ndarray, " v"], drafts: Sequence[tuple[int, Float64[np.ndarray, " v"]]], random: Random
) -> tuple[int | None, int]:
    """An id distributed as p, the first draft that may stay or a fresh draw: which draft (or None), and the id.

    drafts: ids for the same position, each with the distribution q that it was drawn from.  A refused one leaves the
    part of p that its q falls short of, which is the target for the next (recursive rejection sampling, Miao et al.
    2024, algorithm 2).
    """
    for number, (id_, q) in enumerate(drafts):
        if random.random() < acceptance(p, q, id_):
            return number, id_
        p = residual(p, q)
    return None, sample_id(p, random.random())


def verify_chain(
    p: Float64[np.ndarray, "c1 v"], ids: Sequence[int], q: Float64[np.ndarray, "c v"], random: Random
) -> tuple[int, int]:
    """How many of a chain of drafts stay, and the id after them: the text they make is distributed as p.

    p: distributions of the id after the text, after the first draft, ..., after all.
    ids: the drafts.
    q: what each was drawn from, given those before it; one-hot if it was not drawn.

    Uses two random numbers, however many drafts there are.  Drafts may decide whether others follow them, but none may
    be left out for what it is.

    Block verification (Sun et al. 2025, "Block Verification Accelerates Speculative Decoding", arXiv 2403.10444,
    algorithm 2): the output is lossless (theorem 1), and no lossless rule keeps more drafts of a chain on average
    (theorem 2).
    """
    lengths, rests = chain_laws(p, ids, q)
    stay = sample_id(lengths, random.random())
    return stay, sample_id(rests[stay], random.random())


def chain_laws(
    p: Float64[np.ndarray, "c1 v"], ids: Sequence[int], q: Float64[np.ndarray, "c v"]
) -> tuple[Float64[np.ndarray, " c1"], Float64[np.ndarray, "c1 v"]]:
    """What `verify_chain` draws from: the law of how many drafts stay, and that of the id after each number of them.

    The latter are not normalised.  With P(i) the probability that at least i drafts stay, given the first i:

        P(0) = 1,  P(i) = min(1, P(i - 1) p(x_i) / q(x_i))
        rest(i) = max(P(i) p - q, 0), the law of the id after i drafts (equation 4)
        h(i) = sum(rest(i)) / (sum(rest(i)) + 1 - P(i)) (equation 5)

    Behind the last draft nothing was drafted: q = 0 makes the rest p, and h = P.  The paper lets the text end behind i
    drafts with probability h(i), independently, and takes the last end.  So i drafts stay with probability h(i) times
    the product of 1 - h(j) over j > i.
    """
    places, at_least = np.arange(len(q)), np.ones(len(p))
    for i, (kept, drawn) in enumerate(zip(p[places, ids].tolist(), q[places, ids].tolist(), strict=True)):
        kept *= at_least[i]
        at_least[i + 1] = kept / drawn if kept < drawn else 1.0  # compared first, as the quotient may be too large
    rests = np.maximum(at_least[:, None] * p - np.concatenate([q, np.zeros_like(p[:1])]), 0)
    totals = rests.sum(-1)
    # How probable it is that the text ends behind i drafts or before, given these.  It is 0 where P = 1 and p = q but
    # for rounding.  Only a draft too improbable to show in these sums lets it end there, and then it has to: h = 1.
    ends = totals + (1 - at_least)
    h = np.divide(totals, ends, out=np.ones_like(ends), where=ends > 0)
    rests[totals == 0] = p[totals == 0]  # as in `residual`; where P < 1, h = 0
    return h * np.append(np.cumprod(1 - h[:0:-1])[::-1], 1.0), rests


class Draws:
    """What the loop decides about logits where every id may follow: by NumPy.  `CompiledDraws` decides the same."""

    def leads(self, logits: Float[np.ndarray, "l v"], margin: float) -> tuple[list[int], list[bool]]:
        """At each position the likeliest id, and whether its lead is at least that share of the largest logit."""
        best, lead = top_two(logits)
        least = (margin * np.abs(logits[:, :VOCAB_SIZE]).max(-1)).tolist()
        return best, [one >= other for one, other in zip(lead, least, strict=True)]

    def softmax(self, logits: Float[np.ndarray, "l v"], temperature: float) -> Float64[np.ndarray, "l v"]:
        return softmax(logits, temperature)

    def sample_ids(self, q: Float64[np.ndarray, "l v"], uniforms: Sequence[float]) -> list[int]:
        """An id from each of the distributions; see `sample_id`."""
        return [sample_id(law, uniform) for law, uniform in zip(q, uniforms, strict=True)]

    def verify_chain(
        self, p: Float64[np.ndarray, "c1 v"], ids: Sequence[int], q: Float64[np.ndarray, "c v"] | None, random: Random
    ) -> tuple[int, int]:
        """See `verify_chain`; without q the drafts were not drawn."""
        return verify_chain(p, ids, np.eye(p.shape[1])[ids] if q is None else q, random)


NUMPY = Draws()

"""How many drafts a pass gets in mode "auto", and whose: copied bytes, those of the heads, or none.

A draft is worth its place if the chance that it is kept is more than what the place costs, counted in bytes:

    chance(draft d and all before it are kept)  >  r (T(d + 1) - T(d))

T(c) is the time of a pass over c ids, measured once on this machine (costs.py), and r the bytes a second so far.  For a
row's long-run speed this is the best rule: bytes a pass minus r times seconds a pass is greatest where it says stop.

Whether a draft is made depends on what is known before it is drawn: the text, the logits, how earlier drafts fared.  A
choice that looked at the drawn byte itself (and dropped it if it is unlikely, say) would bend the law of the output:
verification corrects for the distribution that drafts are drawn from, not for a selection of them.  And no clock is
read: the same seed draws the same text on the same machine.

Chances are learned from the passes of the row.  Of a copied byte: how often copies were right behind a match of that
length.  Of a head's: the largest probability that it gives, times how much more or less often than that it was right.

The native engine has a twin of this in C++ (engines/native/choices.cpp), which chooses the same to the last bit.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from bytemtp.decoding.copies import Copies
from bytemtp.decoding.sampling import softmax

KEPT = 1 - 1 / 64
"""Weight that each pass leaves to those before it: some 64 are remembered."""
FIRST_REST, LONGEST_REST = 6, 64
"""What does not pay is tried again after so many passes, then after twice as many, ..."""
UNTRIED = 0.5
"""Bytes beyond their cost that heads are expected to bring before they were tried: what is dear is given up sooner.
At 1.0 copies came later, since they compete with the heads, and `auto` was some 3 % slower at 1.6M parameters."""
WORTH = 1.5
"""Times as fast as plain decoding that drafts have to be if all of them are right; half of them hardly ever are."""
COPY_CHANCES = (0.0, 0.3, 0.4, 0.55, 0.65, 0.75, 0.93)
"""Chance that a copied byte is right, by `bit_length` of the match, until the row's own passes say: of Python files."""


@dataclass(frozen=True)
class Costs:
    """Seconds of a row's share of a pass."""

    passes: Sequence[float]
    """over 1, 2, 3, ... ids"""
    heads: float
    """to ask the heads for drafts, if none is worth its place"""
    head: float = 0.0
    """to take a draft from a head"""
    look: float = 0.0
    """to look for something to copy, and to choose"""

    @property
    def may_pay(self) -> bool:
        """Whether drafts can bring enough to look for them: not where passes compute rather than read, as with many
        texts at a time."""
        best = max((1 + drafts) / (seconds + self.look) for drafts, seconds in enumerate(self.passes))
        return best * self.passes[0] > WORTH

    @property
    def most(self) -> int:
        """Drafts of a pass whose cost is known."""
        return len(self.passes) - 1

    def extra(self, drafts: int) -> float:
        """Of a pass that verifies so many drafts, beyond one that verifies none."""
        return self.passes[drafts] - self.passes[0]


class Mean:
    """Of the latest values; `value` counts for `weight` of them at first."""

    def __init__(self, value: float, weight: float = 4.0) -> None:
        self.total, self.weight = value * weight, weight

    def add(self, value: float, weight: float = 1.0) -> None:
        self.total, self.weight = KEPT * self.total + value, KEPT * self.weight + weight

    @property
    def value(self) -> float:
        return self.total / self.weight


class Habit:
    """Something that is done while it pays, and now and then to see whether it would."""

    def __init__(self) -> None:
        self.gain = Mean(UNTRIED)
        """bytes that a pass with it brought, beyond what it cost in bytes"""
        self.rested, self.rest = 0, FIRST_REST

    def pays(self) -> bool:
        return self.gain.value > 0

    def is_due(self) -> bool:
        """Whether it is to be done in the next pass."""
        return self.pays() or self.rested >= self.rest

    def learn(self, gain: float | None) -> None:
        """What a pass with it brought; None: a pass was without it.

        If it pays after a rest, the past is forgotten; but not more is staked than it has won since: at temperatures
        above 0 a try that brings nothing in the long run is lucky now and then.
        """
        if gain is None:
            self.rested += 1
            return
        if self.rested >= self.rest:
            if gain > 0:
                self.gain, self.rest = Mean(0.0), FIRST_REST
            else:
                self.rest = min(2 * self.rest, LONGEST_REST)
        self.gain.add(gain)
        self.rested = 0


class Chooser:
    """What the past of a row says about its next drafts.

    For each pass: `begin`, and `worth` if the heads are asked.

    Shapes:  h drafting heads, v vocabulary.
    """

    def __init__(self, copies: Copies, costs: Costs, depth: int, *, may_rest: bool) -> None:
        """depth: drafts of the heads; may_rest: whether they can leave out passes and be asked again."""
        self.text, self.costs, self.depth, self.may_rest = copies, costs, depth, may_rest
        self.places = places_of(costs, depth)
        self.bytes_a_second = Mean(1 / costs.passes[0], 4 * costs.passes[0])
        self.copies_right = {index: [Mean(chance) for chance in COPY_CHANCES] for index in (False, True)}
        """those of the text and those of an index, which are less often right behind a match of the same length"""
        self.heads_right = [Mean(1.0) for _ in range(depth)]
        """by depth: how often a draft was right, over the probability that its head gave it"""
        self.drafting, self.heads = Habit(), Habit()
        """whether anything is looked for, and whether the heads are asked where nothing is copied"""
        self.asks, self.follows = False, depth > 0 and not may_rest
        """whether the heads draft for the next pass, and whether they read on in any case"""
        self.looks, self.copied, self.match = False, 0, 0
        self.chance, self.probabilities = 1.0, list[float]()
        """of the heads' drafts: that all are kept, and what the heads gave to each"""

    @property
    def rate(self) -> float:
        return self.bytes_a_second.value

    # ---- before a pass

    def begin(self, accepted: int, data: bytes, most: int) -> bytes:
        """Copied bytes to draft for the next pass, `most` at most; then `asks` says whether the heads are to draft.

        accepted: how many drafts of the last pass were kept; data: the bytes that it decided.  Not to be called once
        the text has ended: then the draft behind the last one that was kept had no verdict.
        """
        self._learn(accepted)
        self.text.extend(data)
        self.chance, self.probabilities = 1.0, []
        self.looks, copied = self.drafting.is_due(), b""
        if self.looks:
            self.match, offered = self.text.continuation(most)
            copied = offered[: self._number(self.match, len(offered))]
        self.copied = len(copied)
        wanted = self.depth > 0 and (self.heads.is_due() if self.may_rest else self.heads.pays())
        self.asks, self.follows = self.looks and not copied and wanted, wanted and not self.may_rest
        return copied

    def _number(self, match: int, count: int) -> int:
        """How many of `count` copied bytes to draft behind a match of that length; 0 where heads promise more."""
        rate, chance, kept = self.rate, 1.0, 0.0
        best, number = self._expected_of_heads(), 0
        for drafts in range(1, min(count, self.costs.most) + 1):
            chance *= self._copy_right(match + drafts - 1).value
            kept += chance
            gain = kept - rate * self.costs.extra(drafts)
            if gain > best:
                best, number = gain, drafts
        return number

    def _expected_of_heads(self) -> float:
        """Bytes, beyond their cost."""
        return max(0.0, self.heads.gain.value) if self.depth else 0.0

    def worth(self, depth: int, drawn_from: Float[np.ndarray, "h v"], *, are_logits: bool) -> int:
        """How many drafts to make from that depth on, of these distributions, or logits, of the heads.

        Each has to be worth its place, by the chance that it and those before it are kept.
        """
        laws = softmax(drawn_from, 1.0) if are_logits else drawn_from
        for number, probability in enumerate(laws.max(-1).tolist()):
            place = depth + number - 1
            self.chance *= min(1.0, probability * self.heads_right[place].value)
            if not self.chance > self.rate * self.places[place]:
                return number
            self.probabilities.append(probability)
        return len(laws)

    # ---- after it

    def _learn(self, accepted: int) -> None:
        by_heads = len(self.probabilities)
        drafts = self.copied or by_heads
        cost = self.costs.extra(drafts) + self.asks * self.costs.heads + by_heads * self.costs.head
        gain = accepted - self.rate * cost
        for i in range(min(accepted + 1, self.copied)):
            self._copy_right(self.match + i).add(float(i < accepted))
        for i, probability in enumerate(self.probabilities[: accepted + 1]):
            self.heads_right[i].add(float(i < accepted), probability)
        if not self.copied:
            self.heads.learn(gain if self.asks else None)
        self.drafting.learn(gain - self.rate * self.costs.look if self.looks else None)
        self.bytes_a_second.add(float(accepted + 1), self.costs.passes[0] + cost + self.looks * self.costs.look)

    def _copy_right(self, match: int) -> Mean:
        return self.copies_right[self.text.is_from_index][min(match.bit_length(), len(COPY_CHANCES) - 1)]


def places_of(costs: Costs, most: int) -> list[float]:
    """By depth, up to `most`: the least that a head's draft there and those behind it cost each.

    The first may cost more than all that follow it.
    """
    passes, ends = costs.passes, range(1, most + 1)
    return [
        costs.head + min((passes[end] - passes[first]) / (end - first) for end in ends[first:]) for first in range(most)
    ]

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
"""

from collections.abc import Sequence
from dataclasses import dataclass

KEPT = 1 - 1 / 64
"""Weight that each pass leaves to those before it: some 64 are remembered."""
FIRST_TRIES = 6
"""Passes after which heads that did not pay rest; they are tried again after so many, then after twice as many, ..."""
LONGEST_REST = 64
UNTRIED = 1.0
"""Bytes beyond their cost that heads are expected to bring before they were tried."""
DEAR = 0.4
"""Share of a pass that a draft may cost: beyond it choosing lost up to 15 % in measurements, and never gained 10 %."""
COPY_CHANCES = (0.0, 0.3, 0.4, 0.55, 0.65, 0.75, 0.93)
"""Chance that a copied byte is right, by `bit_length` of the match, until the row's own passes say: of Python files."""


@dataclass(frozen=True)
class Costs:
    """Seconds of a row's share of a pass."""

    passes: Sequence[float]
    """over 1, 2, 3, ... ids"""
    heads: float
    """to ask the heads for drafts"""
    head: float = 0.0
    """to take a draft from a head"""
    look: float = 0.0
    """to look for something to copy, and to choose"""

    @property
    def may_pay(self) -> bool:
        """Whether drafts can bring enough to look for them: not where a pass computes rather than reads, as with many
        texts at a time."""
        return self.extra(1) < DEAR * self.passes[0]

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
        self.gain = Mean(0.0)
        """bytes that a pass with it brought, beyond what it cost in bytes"""
        self.tried = self.rested = 0
        self.rest = FIRST_TRIES

    def pays(self) -> bool:
        return self.gain.value > 0 or self.tried < FIRST_TRIES

    def is_due(self) -> bool:
        """Whether it is to be done in the next pass."""
        return self.pays() or self.rested >= self.rest

    def learn(self, gain: float | None) -> None:
        """Of a pass in which it was due; None: it was not."""
        if gain is None:
            self.rested += 1
            return
        self.tried += 1
        self.gain.add(gain)
        if self.rested >= self.rest:
            self.rest = FIRST_TRIES if self.gain.value > 0 else min(2 * self.rest, LONGEST_REST)
        self.rested = 0


class Chooser:
    """What the past of a row says about its next drafts."""

    def __init__(self, costs: Costs, depth: int, *, may_rest: bool) -> None:
        """depth: drafts of the heads; may_rest: whether they can leave out passes and be asked again."""
        self.costs, self.depth, self.may_rest = costs, depth, may_rest
        self.places = [self._place(drafts) for drafts in range(1, depth + 1)]
        """by depth: what a head's draft there costs"""
        self.bytes_a_second = Mean(1 / costs.passes[0], 4 * costs.passes[0])
        self.copies_right = {index: [Mean(chance) for chance in COPY_CHANCES] for index in (False, True)}
        """those of the text and those of an index, which are less often right behind a match of the same length"""
        self.heads_right = [Mean(1.0) for _ in range(depth)]
        """by depth: how often a draft was right, over the probability that its head gave it"""
        self.drafting, self.heads = Habit(), Habit()
        """whether anything is looked for, and whether the heads are asked where nothing is copied"""

    def _place(self, depth: int) -> float:
        """The least that drafts from that depth on cost each: the first may cost more than all that follow it."""
        passes, first = self.costs.passes, depth - 1
        ends = range(depth, self.depth + 1)
        return self.costs.head + min((passes[end] - passes[first]) / (end - first) for end in ends)

    @property
    def rate(self) -> float:
        return self.bytes_a_second.value

    # ---- before a pass

    def copies(self, match: int, count: int, *, index: bool = False) -> int:
        """How many of `count` copied bytes to draft behind a match of that length; 0 where heads promise more.

        index: whether they are from an index.
        """
        rate, chance, kept = self.rate, 1.0, 0.0
        best, number = self._expected_of_heads(), 0
        for drafts in range(1, min(count, len(self.costs.passes) - 1) + 1):
            chance *= self._copy_right(index, match + drafts - 1).value
            kept += chance
            gain = kept - rate * self.costs.extra(drafts)
            if gain > best:
                best, number = gain, drafts
        return number

    def _expected_of_heads(self) -> float:
        """Bytes, beyond their cost."""
        if not self.depth:
            return 0.0
        return UNTRIED if self.heads.tried < FIRST_TRIES else max(0.0, self.heads.gain.value)

    def wants_heads(self) -> bool:
        """Whether the heads are asked: while they pay, and now and then to see whether they would."""
        return self.depth > 0 and (self.heads.is_due() if self.may_rest else self.heads.pays())

    def is_worth(self, depth: int, chance: float) -> bool:
        """Of a head's draft at that depth, if it and those before it are kept with that chance."""
        return chance > self.rate * self.places[depth - 1]

    def head_right(self, depth: int, probability: float) -> float:
        """Chance that the head's draft at that depth is right once those before it are."""
        return min(1.0, probability * self.heads_right[depth - 1].value)

    # ---- after it

    def learn(
        self,
        accepted: int,
        copied: int = 0,
        match: int = 0,
        probabilities: Sequence[float] = (),
        *,
        asked: bool,
        looked: bool = True,
        index: bool = False,
    ) -> None:
        """How the drafts fared: `copied` bytes behind a match, or those of the heads, which gave them `probabilities`.

        asked: whether the heads were asked; looked: whether anything was looked for; index: whether the bytes were
        copied from one.  Call it for passes after which the row goes on: others end before a verdict.
        """
        drafts = copied or len(probabilities)
        cost = self.costs.extra(drafts) + asked * self.costs.heads + len(probabilities) * self.costs.head
        gain = accepted - self.rate * cost
        for i in range(min(accepted + 1, copied)):
            self._copy_right(index, match + i).add(float(i < accepted))
        for i, probability in enumerate(probabilities[: accepted + 1]):
            self.heads_right[i].add(float(i < accepted), probability)
        if not copied and looked:
            self.heads.learn(gain if asked else None)
        self.drafting.learn(gain - self.rate * self.costs.look if looked else None)
        self.bytes_a_second.add(float(accepted + 1), self.costs.passes[0] + cost + looked * self.costs.look)

    def _copy_right(self, index: bool, match: int) -> Mean:
        return self.copies_right[index][min(match.bit_length(), len(COPY_CHANCES) - 1)]

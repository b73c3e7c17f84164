"""Block verification, enumerated: all drafts of a chain and all that may come of them, so the laws are exact."""

import math
from itertools import product
from random import Random

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bytemtp.common.vocab import PADDED_VOCAB_SIZE
from bytemtp.decoding.engines import device_draws
from bytemtp.decoding.sampling import (
    Rule,
    acceptance,
    chain_laws,
    residual,
    sample_id,
    verify_chain,
    verify_siblings,
)
from bytemtp.decoding.utf8 import START, legal

EXACT = 1e-12
KINDS = torch.float64, torch.int64, torch.float64
"""Of p, drafts and q."""


class Chain:
    """Laws of the next id by what stands before it: p for up to `length` drafts, q for each of them."""

    def __init__(self, size, length, generator, zeros, likeness):
        self.size, self.length, self.generator = size, length, generator
        self.zeros, self.likeness = zeros, likeness
        self.p = {text: self._law() for n in range(length + 1) for text in self.texts(n)}
        self.q = {text: self._like(law) for text, law in self.p.items() if len(text) < length}
        self.ends: set[tuple[int, ...]] = set()
        """drafts behind which no more are drafted"""

    def _law(self):
        weights = np.exp(self.generator.choice([1, 3, 30]) * self.generator.standard_normal(self.size))
        weights = weights * (self.generator.random(self.size) >= self.zeros)
        return self._certain() if not weights.any() else weights / weights.sum()

    def _certain(self):
        return np.eye(self.size)[self.generator.integers(self.size)]

    def _like(self, law):
        """Another law, p itself, or p but for rounding."""
        near = law * (1 + 1e-15 * self.generator.standard_normal(self.size))
        kind = self.generator.choice(["other", "same", "near", "certain"], p=self.likeness)
        return {"other": self._law(), "same": law, "near": near / near.sum(), "certain": self._certain()}[kind]

    def texts(self, length):
        return product(range(self.size), repeat=length)

    def laws(self, drafts):
        """Arguments for a chain of these drafts."""
        before = [drafts[:i] for i in range(len(drafts) + 1)]
        q = np.array([self.q[text] for text in before[:-1]]).reshape(
            -1, self.size
        )  # that of no drafts has columns, too
        return np.array([self.p[text] for text in before]), drafts, q

    def probability(self, table, text, first=0):
        """Of the ids of a text from `first` on."""
        return math.prod(float(table[text[:i]][text[i]]) for i in range(first, len(text)))

    def drawn(self):
        """All chains that can be drafted, with their probabilities."""
        whole = self.texts(self.length)
        chains = {next((x[:i] for i in range(len(x)) if x[:i] in self.ends), x) for x in whole}
        return [(x, self.probability(self.q, x)) for x in sorted(chains) if self.probability(self.q, x) > 0]

    def kept(self):
        """Expected number of drafts that stay."""
        numbers = np.arange(self.length + 1)
        return sum(weight * float(chain_laws(*self.laws(drafts))[0] @ numbers) for drafts, weight in self.drawn())


LIKENESS = [[0.7, 0.1, 0.1, 0.1], [0.3, 0.3, 0.3, 0.1], [0, 0, 0, 1]]
chains = st.builds(
    lambda size, length, seed, zeros, likeness: Chain(size, length, np.random.default_rng(seed), zeros, likeness),
    st.integers(2, 3),
    st.integers(1, 3),
    st.integers(0, 2**32 - 1),
    st.sampled_from([0.0, 0.4]),
    st.sampled_from(LIKENESS),
)


@settings(max_examples=80)
@given(chain=chains, ending=st.sampled_from([0.0, 0.3]))
def test_texts_have_the_law_of_p(chain, ending):
    """The drafts that stay and the id after them, then plain decoding: all texts an id longer than the chain.

    What was drafted may decide how many more drafts there are.
    """
    chain.ends = {text for text in chain.q if chain.generator.random() < ending}
    written = dict.fromkeys((text for n in range(chain.length + 2) for text in chain.texts(n)), 0.0)
    for drafts, weight in chain.drawn():
        for stay, (share, rest) in enumerate(zip(*chain_laws(*chain.laws(drafts)), strict=True)):
            for id_, p in enumerate(rest / rest.sum()):
                written[*drafts[:stay], id_] += weight * float(share) * float(p)
    for text in chain.texts(chain.length + 1):
        law = sum(written[text[:n]] * chain.probability(chain.p, text, n) for n in range(1, len(text) + 1))
        assert law == pytest.approx(chain.probability(chain.p, text), abs=EXACT)


@settings(max_examples=60)
@given(chain=chains)
def test_no_lossless_rule_keeps_more(chain):
    """Let A(x) be the probability that the ids x are drafted and stay.  A(x) <= q(x).  And A(x, y) <= A(x) p(y | x): of
    all texts that begin with x the share p(y | x) goes on with y; of those among them that left the drafts before the
    end of x, too, as they are decoded plainly; so it is the same share of the rest.  Hence A(x) is at most the least,
    over all places in x, of q up to there times p behind it, and the drafts that stay at most the sum of that over x.
    """
    best = sum(
        min(chain.probability(chain.q, x[:i]) * chain.probability(chain.p, x, i) for i in range(n + 1))
        for n in range(1, chain.length + 1)
        for x in chain.texts(n)
    )
    assert chain.kept() == pytest.approx(best, abs=EXACT)


def one_by_one(chain):
    """Expected number of drafts that stay when each is accepted or refused by itself."""
    return sum(
        math.prod(acceptance(chain.p[x[:i]], chain.q[x[:i]], x[i]) for i in range(n)) * chain.probability(chain.q, x)
        for n in range(1, chain.length + 1)
        for x in chain.texts(n)
        if chain.probability(chain.q, x) > 0
    )


@given(chain=chains)
def test_never_fewer_stay_than_one_by_one(chain):
    assert chain.kept() >= one_by_one(chain) - EXACT


def test_more_stay_than_one_by_one():
    """The example of the paper's section 2: 11/9 drafts of two, one by one 10/9."""
    chain = Chain(2, 2, np.random.default_rng(0), 0, LIKENESS[0])
    chain.p, chain.q = ({text: np.array(law) / 3 for text in chain.p} for law in ([1.0, 2.0], [2.0, 1.0]))
    assert chain.kept() == pytest.approx(11 / 9, abs=EXACT)
    assert one_by_one(chain) == pytest.approx(10 / 9, abs=EXACT)


@given(chain=chains)
def test_copies_stay_as_one_by_one(chain):
    """They are certain, so nothing is to be gained."""
    chain.q = {text: chain._certain() for text in chain.q}
    ((drafts, _),) = chain.drawn()
    p, _, q = chain.laws(drafts)
    lengths, _ = chain_laws(p, drafts, q)
    at_least = np.cumprod([acceptance(p[i], q[i], id_) for i, id_ in enumerate(drafts)])
    np.testing.assert_allclose(lengths[::-1].cumsum()[::-1][1:], at_least, atol=EXACT)


@st.composite
def real_chains(draw):
    """p, drafts and q as decoding makes them: many ids, some illegal, drafts drawn from q."""
    generator = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    length, noise = draw(st.integers(0, 8)), draw(st.sampled_from([0.0, 0.1, 2.0]))
    logits = 3 * generator.standard_normal((length + 1, PADDED_VOCAB_SIZE))
    rule = Rule(draw(st.sampled_from([0.0, 0.5, 1.0])), draw(st.sampled_from([0, 3])))
    p = rule.distribution(logits, draw(st.sampled_from([None, legal(START)])))
    q = rule.distribution(logits[:-1] + noise * generator.standard_normal((length, PADDED_VOCAB_SIZE)))
    return p, [sample_id(law, generator.random()) for law in q], q


def slow_laws(p, ids, q):
    """The paper's algorithm 2 as it is written, with the probabilities of its draws in their place."""
    at_least = [1.0]
    for i, id_ in enumerate(ids):
        at_least.append(min(1.0, at_least[i] * float(p[i, id_] / q[i, id_])))
    lengths, left, rests = [], 1.0, [p[-1]]
    for i in reversed(range(len(ids) + 1)):
        h = at_least[i]
        if i < len(ids):
            missing = np.maximum(at_least[i] * p[i] - q[i], 0)
            ends = float(missing.sum()) + 1 - at_least[i]
            h = float(missing.sum()) / ends if ends > EXACT else 1.0
            rests.insert(0, missing / missing.sum() if missing.sum() > EXACT else p[i])
        lengths.insert(0, left * h)
        left *= 1 - h
    return np.array(lengths), np.array(rests)


@settings(max_examples=200)
@given(chain=real_chains())
def test_the_laws_are_those_of_the_slow_twin(chain):
    lengths, rests = chain_laws(*chain)
    slow, slow_rests = slow_laws(*chain)
    np.testing.assert_allclose(lengths, slow, atol=EXACT, rtol=0)
    assert lengths.sum() == pytest.approx(1, abs=EXACT) and (lengths >= 0).all()
    rests = rests / rests.sum(-1, keepdims=True)
    np.testing.assert_allclose(lengths[:, None] * rests, slow[:, None] * slow_rests, atol=EXACT, rtol=0)


@settings(max_examples=200)
@given(chain=real_chains(), seed=st.integers(0, 2**32 - 1))
def test_a_device_draws_alike(chain, seed):
    """Two rows, the other one with a chain of its own, of the same length."""
    p, ids, q = chain
    others = [chain, (p[::-1], ids, q)]
    tensors = [torch.tensor(np.array(x), dtype=kind) for x, kind in zip(zip(*others, strict=True), KINDS, strict=True)]
    tensors[1] = tensors[1].view(2, len(ids))
    lengths, rests = device_draws.chain_laws(*tensors)
    uniform = np.random.default_rng(seed).random((2, 2))
    stay, id_ = device_draws.verify_chains(*tensors, torch.from_numpy(uniform))
    for row, laws in enumerate(others):
        expected, expected_rests = chain_laws(*laws)
        np.testing.assert_allclose(lengths[row], expected, atol=EXACT, rtol=0)
        np.testing.assert_allclose(rests[row], expected_rests, atol=EXACT, rtol=0)
        assert stay[row] == sample_id(lengths[row].numpy(), uniform[row, 0])
        assert id_[row] == sample_id(rests[row, stay[row]].numpy(), uniform[row, 1])


@given(law=st.lists(st.sampled_from([0.0, 0.1, 0.5, 3.0]), min_size=2, max_size=9).filter(any))
@pytest.mark.parametrize("uniform", [0.0, 0.5, 1 - 2.0**-53])
def test_a_device_never_draws_what_cannot_be(law, uniform):
    law = torch.tensor([law, law[::-1]], dtype=torch.float64)
    ids = device_draws.draw(law, torch.full((2,), uniform, dtype=torch.float64))
    assert (law.gather(1, ids[:, None]) > 0).all()


def test_random_numbers_are_those_of_splitmix64():
    """Its first three for the seed 1234567, as published with the algorithm; and counters do not overlap."""
    keys, counter = torch.tensor([1234567, -5]), torch.tensor([0, 7])
    numbers = device_draws.uniforms(keys, counter, 3)
    published = [6457827717110365317, 3203168211198807973, 9817491932198370423]
    assert numbers[0].tolist() == [(x >> 11) * 2.0**-53 for x in published]
    assert torch.equal(
        device_draws.uniforms(keys, counter + 1, 3)[:, 0], device_draws.uniforms(keys, counter * 3 + 3, 1)[:, 0]
    )
    many = device_draws.uniforms(torch.arange(100), torch.arange(100), 8)
    assert len(many.unique()) == 800 and many.min() >= 0 and many.max() < 1


@given(chain=real_chains())
def test_one_draft_is_judged_as_by_itself(chain):
    p, ids, q = (part[:1] for part in chain)
    if ids:
        lengths, rests = chain_laws(chain[0][:2], ids, q)
        keep = acceptance(p[0], q[0], ids[0])
        np.testing.assert_allclose(lengths, [1 - keep, keep], atol=EXACT)
        np.testing.assert_allclose(rests[0] / rests[0].sum(), residual(p[0], q[0]), atol=EXACT)


@pytest.mark.parametrize("tiny", [1e-20, 5e-324])
def test_a_draft_that_is_too_improbable_to_be_drawn(tiny):
    """p and q are the same but for rounding, so nothing seems to be left for the id after the refused draft."""
    assert verify_chain(np.eye(2)[[0, 0]], [1], np.array([[1.0, tiny]]), Random(0)) == (0, 0)
    assert verify_chain(np.eye(2)[[1, 0]], [1], np.array([[1.0, tiny]]), Random(0)) == (1, 0)


@given(best=st.lists(st.integers(0, 4), min_size=1, max_size=6), data=st.data())
def test_greedy_chains_stay_as_long_as_they_agree(best, data):
    ids = data.draw(st.lists(st.integers(0, 4), min_size=len(best) - 1, max_size=len(best) - 1))
    agree = next((i for i, id_ in enumerate(ids) if id_ != best[i]), len(ids))
    certain = np.eye(5)
    assert verify_chain(certain[best], ids, certain[ids], Random(0)) == (agree, best[agree])


@given(chain=real_chains(), seed=st.integers(0, 100))
def test_two_random_numbers_are_used(chain, seed):
    """Whatever comes of it, as the row's later draws come from the same generator."""
    random, twin = Random(seed), Random(seed)
    verify_chain(*chain, random)
    assert [twin.random(), twin.random(), twin.random()][-1] == random.random()


class Scripted(Random):
    """Gives the numbers that it is told to."""

    def __init__(self, *numbers):
        super().__init__(0)
        self.numbers = list(numbers)

    def random(self):
        return self.numbers.pop(0)


def test_it_draws_by_these_laws():
    """A grid of random numbers: no frequency is off by more than a step of the grid in each direction."""
    p, q = np.array([[0.4, 0.3, 0.3], [0.1, 0.2, 0.7], [0.6, 0.0, 0.4]]), np.array([[0.2, 0.7, 0.1], [0.5, 0.25, 0.25]])
    lengths, rests = chain_laws(p, [1, 0], q)
    assert (lengths > 0.05).all(), "or this tests nothing"
    counts, steps = np.zeros((3, 3)), 60
    for i, j in product(range(steps), repeat=2):
        counts[verify_chain(p, [1, 0], q, Scripted((i + 0.5) / steps, (j + 0.5) / steps))] += 1
    expected = lengths[:, None] * rests / rests.sum(-1, keepdims=True)
    np.testing.assert_allclose(counts / steps**2, expected, atol=2 / steps)


def test_one_by_one_is_what_siblings_do():
    """`one_by_one` above speaks of `verify_siblings` with a single draft: it keeps it below the acceptance."""
    p, q = np.array([0.4, 0.6]), np.array([0.8, 0.2])
    keep = acceptance(p, q, 0)
    assert verify_siblings(p, [(0, q)], Scripted(keep - 1e-9)) == (0, 0)
    assert verify_siblings(p, [(0, q)], Scripted(keep + 1e-9, 0.0)) == (None, 1)

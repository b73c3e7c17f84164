"""The law of what is written, enumerated: no draws, no chance, no tolerance but rounding."""

import math
from collections import Counter
from random import Random

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bytemtp.common.vocab import PADDED_VOCAB_SIZE, VOCAB_SIZE
from bytemtp.decoding.sampling import (
    Rule,
    acceptance,
    residual,
    sample_candidates,
    sample_id,
    top_candidates,
    top_two,
    verify_siblings,
)


@st.composite
def laws(draw_, size=VOCAB_SIZE):
    """Distributions over all ids: rough, peaked, or with many zeros."""
    generator = np.random.default_rng(draw_(st.integers(0, 2**32 - 1)))
    steepness = draw_(st.sampled_from([0.1, 1.0, 5.0, 30.0]))
    law = np.exp(steepness * generator.standard_normal(size))
    law = law / law.sum()
    if draw_(st.booleans()):
        law = law * (generator.random(size) < draw_(st.sampled_from([0.02, 0.5])))
        law[draw_(st.integers(0, size - 1))] += 0.1
    return law / law.sum()


def one_draft(p, q):
    """Law of the id that is written at a position with one draft x ~ q: sum over all x."""
    drawn = [float(q[x]) * acceptance(p, q, x) if q[x] > 0 else 0.0 for x in range(len(p))]
    kept = np.array(drawn)
    refused = 1 - kept.sum()
    return kept + (refused * residual(p, q) if refused > 1e-15 else 0)


@given(p=laws(), q=laws())
def test_one_draft_leaves_the_law_as_it_is(p, q):
    np.testing.assert_allclose(one_draft(p, q), p, atol=1e-12, rtol=0)


@given(p=laws(), x=st.integers(0, VOCAB_SIZE - 1))
def test_a_certain_draft_leaves_the_law_as_it_is(p, x):
    q = np.zeros_like(p)
    q[x] = 1
    np.testing.assert_allclose(one_draft(p, q), p, atol=1e-12, rtol=0)


def siblings(p, q, count):
    """Law with `count` drafts drawn without replacement from q: sum over all their sequences."""
    size = len(p)
    out = np.zeros(size)

    def refuse(weight, target, law, left):
        """`weight` is the probability of having drawn and refused what came before."""
        if not left or law.sum() <= 0:
            out[:] += weight * target
            return
        for x in range(size):
            if law[x] <= 0:
                continue
            accept = acceptance(target, law, x)
            out[x] += weight * law[x] * accept
            if accept < 1:
                rest = law.copy()
                rest[x] = 0
                rest = rest / rest.sum() if rest.sum() > 1e-300 else np.zeros_like(rest)
                refuse(weight * law[x] * (1 - accept), residual(target, law), rest, left - 1)

    refuse(1.0, p, q, count)
    return out


@given(p=laws(size=5), q=laws(size=5), count=st.integers(1, 4))
def test_sibling_drafts_leave_the_law_as_it_is(p, q, count):
    """Every ordered sequence of up to four candidates over five ids."""
    np.testing.assert_allclose(siblings(p, q, count), p, atol=1e-9, rtol=0)


@settings(max_examples=20)
@given(ps=st.lists(laws(), min_size=2, max_size=2), qs=st.lists(laws(), min_size=2, max_size=2))
def test_two_steps_leave_the_joint_law_as_it_is(ps, qs):
    """Drafts x1, x2: the second counts only if the first is kept, else the next pass starts there with law p2 anyway.

    p2 may depend on the first id; it is given as a mixture, so that every one of the 257 x 257 pairs has its own law.
    """
    p1, base = ps
    mix = np.linspace(0, 1, VOCAB_SIZE)[:, None]
    p2 = (1 - mix) * base + mix * base[::-1]
    first_kept = np.minimum(p1, qs[0])
    first = one_draft(p1, qs[0])
    joint = np.zeros((VOCAB_SIZE, VOCAB_SIZE))
    for a in range(0, VOCAB_SIZE, 16):
        second = one_draft(p2[a], qs[1])
        joint[a] = first_kept[a] * second + (first[a] - first_kept[a]) * p2[a]
        np.testing.assert_allclose(joint[a], p1[a] * p2[a], atol=1e-12, rtol=0)


@pytest.mark.parametrize("drafts", [0, 1, 2])
def test_the_loop_draws_by_that_law(drafts):
    """`verify_siblings` itself, 20,000 times.

    By Hoeffding's inequality each of the 6 frequencies is off by more than `bound` with a probability below 1e-9, so a
    false alarm comes once in a hundred million runs at most.
    """
    p, q = (np.array(x) for x in ([0.4, 0.3, 0.0, 0.2, 0.1, 0.0], [0.1, 0.1, 0.5, 0.2, 0, 0.1]))
    times, random, verdicts, counts = 20_000, Random(0), Random("0 0"), Counter()
    with np.errstate(divide="ignore"):
        logits = np.log(q)
    for _ in range(times):
        counts[verify_siblings(p, list(sample_candidates(Rule(1.0), logits, None, drafts, random)), verdicts)[1]] += 1
    bound = math.sqrt(math.log(2 / 1e-9) / (2 * times))
    for id_ in range(6):
        assert counts[id_] / times == pytest.approx(float(p[id_]), abs=bound)


@given(p=laws(), u=st.floats(0, 1, exclude_max=True))
def test_draws_are_never_impossible(p, u):
    assert p[sample_id(p, u)] > 0


@given(p=laws(), rule=st.builds(Rule, st.sampled_from([0.3, 1.0, 2.0]), st.integers(0, 9), st.floats(0.05, 1.0)))
def test_cut_laws_keep_the_likeliest_ids(p, rule):
    law = rule.distribution(logits_of(p))
    whole = Rule(rule.temperature).distribution(logits_of(p))
    kept = law > 0
    assert law.sum() == pytest.approx(1)
    assert not rule.top_k or kept.sum() <= rule.top_k
    assert whole[kept].min() >= whole[~kept].max()
    np.testing.assert_allclose(law[kept], (whole / whole[kept].sum())[kept])


@given(p=laws(), temperature=st.sampled_from([0.3, 1.0, 2.0]), top_k=st.integers(0, 30), top_p=st.floats(0.05, 1.0))
def test_top_p_is_a_share_of_what_top_k_leaves(p, temperature, top_k, top_p):
    """One id after the other, by hand: the k likeliest, renormalised, and of these as many as reach top_p.

    top_p was a share of the whole law before: with top_k 2 of (.4, .3, .2, .1) and top_p .5 both ids stayed.
    """
    law = Rule(temperature, top_k, top_p).distribution(logits_of(p))
    whole = Rule(temperature).distribution(logits_of(p)).tolist()
    likeliest = sorted(range(len(whole)), key=lambda id_: (-whole[id_], id_))[: top_k or None]
    left = math.fsum(whole[id_] for id_ in likeliest)
    kept, share = [], 0.0
    for id_ in likeliest:
        if kept and share >= top_p + 1e-12:
            break
        kept.append(id_)
        share += whole[id_] / left
    expected = np.zeros(len(whole))
    expected[kept] = [whole[id_] for id_ in kept]
    if abs(math.fsum(whole[id_] for id_ in kept[:-1]) / left - top_p) > 1e-9:  # else rounding decides on the last one
        np.testing.assert_allclose(law, expected / expected.sum(), atol=1e-12)


@pytest.mark.parametrize(("top_k", "top_p"), [(0, 0.9), (5, 1.0), (5, 0.6), (2, 0.5), (40, 0.95), (1, 0.1)])
@pytest.mark.parametrize("temperature", [0.4, 1.0, 2.0])
def test_cut_laws_are_those_of_transformers(top_k, top_p, temperature):
    warpers = pytest.importorskip("transformers.generation.logits_process")
    logits = np.random.default_rng(top_k).standard_normal((20, VOCAB_SIZE)) * 3
    scores = torch.from_numpy(logits) / temperature
    scores = warpers.TopKLogitsWarper(top_k)(None, scores) if top_k else scores
    scores = warpers.TopPLogitsWarper(top_p)(None, scores) if top_p < 1 else scores
    law = Rule(temperature, top_k, top_p).distribution(logits)
    np.testing.assert_allclose(law, scores.softmax(-1), atol=1e-9)


def logits_of(p):
    logits = np.full(PADDED_VOCAB_SIZE, -np.inf)
    with np.errstate(divide="ignore"):
        logits[:VOCAB_SIZE] = np.log(p)
    return logits


@pytest.mark.parametrize("temperature", [5e-324, 1e-300, 1e300])
@pytest.mark.parametrize("top_p", [5e-324, 0.5, 1.0])
def test_extreme_rules_are_laws(temperature, top_p):
    law = Rule(temperature, 0, top_p).distribution(np.array([1.0, 2.0, -np.inf, 0.0]))
    assert law.sum() == pytest.approx(1) and law[2] == 0
    assert law[1] == 1 or temperature > 1


def test_greedy_candidates_are_the_likeliest():
    logits = np.array([0.0, 3.0, 1.0, 2.0])
    assert top_candidates(logits, None, 3) == [1, 3, 2]
    assert top_candidates(logits, np.array([True, False, True, False]), 3) == [2, 0]


@given(seed=st.integers(0, 10**6), drafts=st.lists(st.integers(0, 8), max_size=3, unique=True))
def test_greedy_decoding_is_the_same_rule_with_certain_laws(seed, drafts):
    """Its shortcut compares ids; the rule with one-hot p and q gives the same draft and the same id."""
    logits = np.random.default_rng(seed).permutation(9).astype(np.float32)
    best = int(logits.argmax())
    certain = [(id_, np.eye(9)[id_]) for id_ in drafts]
    chosen, id_ = verify_siblings(Rule().distribution(logits), certain, Random(0))
    assert id_ == best == top_two(logits[None])[0][0]
    assert chosen == (drafts.index(best) if best in drafts else None)

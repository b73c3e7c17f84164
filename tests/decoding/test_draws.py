"""The compiled path of a pass is its slow twin: the same decisions, and with one seed the same texts."""

from random import Random

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from jaxtyping import Float32
from test_auto import COSTS, REPEATING
from test_loop import TOPOLOGIES, model_for

from bytemtp.common.vocab import PADDED_VOCAB_SIZE, VOCAB_SIZE
from bytemtp.decoding.chooser import Chooser
from bytemtp.decoding.copies import Copies
from bytemtp.decoding.drafters import HeadDrafter
from bytemtp.decoding.engines.native.draws import CompiledDraws
from bytemtp.decoding.engines.native.engine import NativeEngine
from bytemtp.decoding.generate import Generation, generate_batch
from bytemtp.decoding.loop import VerifyLoop
from bytemtp.decoding.sampling import NUMPY, Draws, Rule, softmax

SLOW = NUMPY


@pytest.fixture(scope="module")
def fast() -> CompiledDraws:
    return CompiledDraws()


def logits_of(seed: int, count: int, steepness: float, step: float) -> Float32[np.ndarray, "l v"]:
    """Float32, those behind the vocabulary -inf; step: rounded to multiples of it, so that there are ties."""
    logits = steepness * np.random.default_rng(seed).standard_normal((count, PADDED_VOCAB_SIZE))
    logits = logits if step == 0 else np.round(logits / step) * step
    logits[:, VOCAB_SIZE:] = -np.inf
    return logits.astype(np.float32)


LOGITS = st.builds(
    logits_of,
    st.integers(0, 999),
    st.integers(1, 16),
    st.sampled_from([0.1, 3.0, 40.0]),
    st.sampled_from([0, 0.5, 1e-4]),
)


@given(logits=LOGITS, margin=st.sampled_from([2e-5, 1e-3, 0.1]))
def test_the_best_and_their_leads(fast, logits, margin):
    assert fast.leads(logits, margin) == SLOW.leads(logits, margin)


@given(
    logits=LOGITS,
    temperature=st.sampled_from([1e-300, 1e-3, 0.8, 1.0, 7.0, 1e9]),
    uniform=st.floats(0, 1, exclude_max=True),
)
@example(logits=logits_of(429, 2, 3.0, 0), temperature=1e-3, uniform=0.0)  # 3.7e-308 is left
def test_softmax_and_draws(fast, logits, temperature, uniform):
    """Of one law both draw the same id; the laws differ by rounding."""
    found, expected = fast.softmax(logits, temperature), SLOW.softmax(logits, temperature)
    np.testing.assert_allclose(found, expected, rtol=1e-13, atol=1e-300)
    with np.errstate(over="ignore"):
        exponents = (logits.astype(np.float64) - logits.max(-1, keepdims=True)) / temperature
    assert ((found == 0) == (exponents <= -708)).all()  # which the smallest normal number is near
    uniforms = [uniform] * len(logits)
    assert fast.sample_ids(found, uniforms) == SLOW.sample_ids(found, uniforms)


@given(
    logits=LOGITS.filter(lambda logits: len(logits) > 1),
    noise=st.sampled_from([0.0, 0.3, 3.0]),
    temperature=st.sampled_from([0.01, 0.8, 2.0]),
    drawn=st.booleans(),
    rule=st.sampled_from([Rule(1.0), Rule(1.0, top_k=3), Rule(1.0, top_p=0.7)]),
    seed=st.integers(0, 99),
)
def test_chains(fast, logits, noise, temperature, drawn, rule, seed):
    """Drafts that were drawn from nearly the right laws, or copied; some of p and q is 0."""
    p = rule.cut(softmax(logits, temperature))
    near = logits[:-1] + noise * np.random.default_rng(seed).standard_normal((len(logits) - 1, PADDED_VOCAB_SIZE))
    q = rule.cut(softmax(near.astype(np.float32), temperature))
    ids = SLOW.sample_ids(q, np.random.default_rng(seed).random(len(q)).tolist())
    one, other = Random(seed), Random(seed)
    for _ in range(8):
        law = q if drawn else None
        assert fast.verify_chain(p, ids, law, one) == SLOW.verify_chain(p, ids, law, other)
    assert one.random() == other.random()


def in_pieces(engine: NativeEngine, start, ids, lengths, branches=None):
    """As trees are verified."""
    engine._make_room(start, ids.shape[1])
    return engine._verify_tree(start, ids, lengths, branches)


def texts(patch: pytest.MonkeyPatch, prompts, topology: str, *, slow: bool, **options) -> list[Generation]:
    model = model_for(topology)
    if slow:
        for name, twin in {"Draws": Draws, "Copies": Copies, "Chooser": Chooser}.items():
            patch.setattr(f"bytemtp.decoding.loop.Compiled{name}", twin)
        patch.setattr("bytemtp.decoding.generate.loop_kind", lambda *_: VerifyLoop)
        patch.setattr(HeadDrafter, "all_drafts", lambda *_: None)
        patch.setattr(NativeEngine, "verify", in_pieces)
    return generate_batch(model, prompts, 40, engine="native", **options)


@settings(max_examples=60)
@given(
    prompts=st.lists(REPEATING, min_size=1, max_size=3),
    topology=st.sampled_from(TOPOLOGIES),
    mode=st.sampled_from(["ar", "speculative", "copy", "auto", "tree"]),
    temperature=st.sampled_from([0.0, 0.5, 1.0]),
    cut=st.sampled_from([{}, {"top_k": 5}, {"top_p": 0.8}, {"top_k": 9, "top_p": 0.9}]),
    utf8=st.booleans(),
    costs=st.sampled_from(sorted(COSTS)),
    seed=st.integers(0, 99),
)
def test_texts_origins_and_counts(prompts, topology, mode, temperature, cut, utf8, costs, seed):
    """Passes by steps, drafts head by head and decisions by NumPy, against all of them compiled."""
    options = dict(mode=mode, temperature=temperature, utf8=utf8, seed=seed, **cut)
    outs = []
    for slow in (False, True):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("bytemtp.decoding.generate.costs_of", lambda *_, **__: COSTS[costs])
            found = texts(patch, prompts, topology, slow=slow, **options)
        clocks = ("seconds", "prompt_seconds", "bytes_per_s")
        outs.append([(o.data, o.origins, {k: v for k, v in o.stats.items() if k not in clocks}) for o in found])
    assert outs[0] == outs[1]

"""Drafts by the model's own heads: each as a full pass over the text and the drafts before it gives it."""

from dataclasses import replace
from typing import get_args

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_loop import ENGINES, TINY, TOPOLOGIES, model_for
from test_recorded import traced

from bytemtp.common.settings import Topology
from bytemtp.common.vocab import VOCAB_SIZE
from bytemtp.decoding.drafters import HeadDrafter
from bytemtp.decoding.engines import recorded
from bytemtp.decoding.engines.recorded import RecordedEngine
from bytemtp.decoding.generate import generate, generate_batch
from bytemtp.model.model import ByteMTP

TABLED = [topology for topology in get_args(Topology) if topology != "deepseek"]
KINDS = {**ENGINES, "recorded": lambda model, rows, window: RecordedEngine(model, rows, window, 8)}


@settings(max_examples=20)
@given(
    kind=st.sampled_from(sorted(KINDS)),
    topology=st.sampled_from(TOPOLOGIES),
    cuts=st.lists(st.lists(st.integers(0, 6), min_size=3, max_size=3), min_size=1, max_size=3),
    heads=st.integers(2, 4),
    seed=st.integers(0, 9),
)
def test_drafts_follow_from_the_drafts_before_them(kind, topology, cuts, heads, seed):
    """Rows of different lengths, some of which accept nothing in a pass; the ids drafted are any."""
    model, dice = model_for(topology, transitions=topology != "deepseek"), np.random.default_rng(seed)
    ids = dice.integers(0, VOCAB_SIZE, (3, 48))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(recorded, "record_pass", traced)
        drafter = HeadDrafter(KINDS[kind](model, 3, 100), heads, model.transitions)
        start, row = np.zeros(3, dtype=np.int64), np.arange(3)
        for accepted in map(np.array, [[6, 2, 3], *cuts]):
            chunk = ids[row[:, None], start[:, None] + np.arange(max(1, accepted.max()))]
            drafter.engine.verify(start, chunk, accepted)
            found, text = [], ids.copy()
            for i, logits in enumerate(drafter.drafts(start, accepted, text), 1):
                found.append(logits.copy())
                text[row, start + accepted + i] = dice.integers(0, VOCAB_SIZE, 3)
            assert len(found) == (heads - 1 if accepted.any() or kind != "native" else 0)
            with torch.no_grad():
                full = model(torch.from_numpy(text)).numpy()
            for i, logits in enumerate(found, 1):
                for b in np.flatnonzero(accepted):
                    expected = full[i, b, start[b] + accepted[b] - 1]
                    np.testing.assert_allclose(logits[b], expected, atol=1e-4, rtol=1e-4)
            start = start + accepted


@settings(max_examples=25)
@given(
    topology=st.sampled_from(TABLED),
    prompts=st.lists(st.binary(max_size=12), min_size=1, max_size=3),
    mode=st.sampled_from(["speculative", "tree"]),
    heads=st.integers(0, 4),
    utf8=st.booleans(),
    engine=st.sampled_from(sorted(ENGINES)),
)
def test_greedy_bytes_are_those_of_plain_decoding(topology, prompts, mode, heads, utf8, engine):
    model = model_for(topology, transitions=True)
    plain = generate_batch(model, prompts, 20, utf8=utf8, engine=engine)
    fast = generate_batch(model, prompts, 20, mode=mode, heads=heads, utf8=utf8, engine=engine)
    assert [out.data for out in fast] == [out.data for out in plain]


@pytest.mark.parametrize("engine", ENGINES)
def test_what_follows_from_the_byte_before_is_drafted_by_tables_alone(engine):
    """Head 1 counts 1, 2, 3, ...: it sees the last byte.  Without tables the other heads know nothing."""
    config = replace(TINY, layers=1, topology="replicated", dim=272, attention_heads=2, transitions=True)
    model = ByteMTP(config).eval()
    with torch.no_grad():
        for block in model.trunk:
            block.attention_out.weight.zero_()
            block.ffn_out.weight.zero_()
        model.embed.weight.zero_().fill_diagonal_(1.0)
        for unembed in model.unembed:
            unembed.weight.zero_()
        follow = torch.zeros(264, 264)
        follow[torch.arange(256), (torch.arange(256) + 1) % 256] = 1.0
        model.unembed[0].weight[:, :264] = follow.T
    plain = generate(model, b"\x01", 40, engine=engine)
    assert plain.data == bytes(range(2, 42))
    for mode in ("speculative", "tree"):
        blind = generate(model, b"\x01", 40, mode=mode, engine=engine)
        with torch.no_grad():
            model.transitions.copy_(follow.expand_as(model.transitions))
        fast = generate(model, b"\x01", 40, mode=mode, engine=engine)
        with torch.no_grad():
            model.transitions.zero_()
        assert fast.data == blind.data == plain.data
        assert blind.stats["forwards"] > 35 and fast.stats["forwards"] == 1 + 10

"""Caches that are rings: what is written does not depend on them, and memory follows the text, not its limit."""

from dataclasses import replace
from itertools import cycle, islice
from typing import get_args

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bytemtp.common.settings import ModelConfig, Topology
from bytemtp.decoding.engines import ring
from bytemtp.decoding.engines.native.engine import NativeEngine
from bytemtp.decoding.engines.tensor import TensorEngine
from bytemtp.decoding.generate import Options, generate_batch
from bytemtp.model.layers import Block
from bytemtp.model.model import ByteMTP

TOPOLOGIES = get_args(Topology)
TINY = ModelConfig(dim=32, layers=5, attention_heads=4, kv_heads=2, ffn_dim=48, n_future=4)
ENGINES = {"torch": TensorEngine, "native": NativeEngine}
LENGTH = 130


@pytest.fixture(autouse=True, scope="module")
def _short():
    """Rings that go round all the time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ring, "SLOTS", 64)
        patch.setattr(ring, "STEP_BACK", 16)
        yield


def model_of(topology, **changes):
    return ByteMTP(replace(TINY, topology=topology, **changes)).eval()


@given(held=st.integers(0, 8).map(lambda n: 64 * n), end=st.integers(1, 10**9), reach=st.integers(1, 10**9))
def test_a_ring_holds_what_is_seen_and_at_most_twice_the_text(held, end, reach):
    slots = ring.slots_for(held, end, reach)
    assert slots >= max(held, min(end, reach + 16)) and slots % 64 == 0
    assert slots == held or slots < 64 + min(2 * end, reach + 16)


@given(end=st.lists(st.integers(0, 500), min_size=1, max_size=3), held=st.integers(1, 60), more=st.integers(0, 60))
def test_a_larger_ring_holds_the_ids_as_if_they_had_been_written_there(end, held, more):
    source, to = ring.moves(np.array(end), held, held + more)
    for row, stop in enumerate(end):
        small, large, moved = np.full(held, -1), np.full(held + more, -1), np.full(held + more, -1)
        for i in range(max(stop - held, 0), stop):
            small[i % held] = large[i % (held + more)] = i
        moved[to[row]] = small[source[row]]
        np.testing.assert_array_equal(moved, large)


@settings(max_examples=15)
@given(
    kind=st.sampled_from(sorted(ENGINES)),
    topology=st.sampled_from(TOPOLOGIES),
    sizes=st.lists(st.tuples(st.integers(4, 30), st.integers(0, 3)), min_size=1, max_size=6),
    window=st.sampled_from([1, 6, 20, 10**8]),
)
def test_any_split_of_a_long_text_equals_the_full_pass(kind, topology, sizes, window):
    """Two rows, the second half as fast; after each chunk some wrong ids are taken back."""
    model, ids = model_of(topology), np.random.default_rng(0).integers(0, 256, (2, LENGTH))
    full = full_pass(model, ids, window)
    engine, start = ENGINES[kind](model, 2, window), np.zeros(2, dtype=np.int64)
    for size, wrong in cycle(sizes):
        accepted = np.minimum([size, (size + 1) // 2], LENGTH - start)
        if not accepted.all():
            break
        chunk = np.full((2, int(accepted.max()) + wrong), 7)
        for row in range(2):
            chunk[row, : accepted[row]] = ids[row, start[row] : start[row] + accepted[row]]
        logits = engine.verify(start, chunk, accepted + wrong)
        drafted = list(engine.drafts(start, accepted, 4, ids))
        for row, (begin, end) in enumerate(zip(start, start + accepted, strict=True)):
            np.testing.assert_allclose(logits[row, : end - begin], full[0][row, begin:end], atol=1e-4, rtol=1e-4)
            for i in (1, 2, 3):
                if topology != "deepseek" or end - 1 + i < LENGTH:
                    np.testing.assert_allclose(drafted[i - 1][row], full[i][row, end - 1], atol=1e-4, rtol=1e-4)
        start = start + accepted


def full_pass(model, ids, window):
    """Logits of each head."""
    with torch.no_grad():
        context = model.context(torch.from_numpy(ids), ids.shape[1], window=window)
        return [model.logits(i, x).numpy() for i, x in enumerate(model.heads(model.run_trunk(context), context))]


@pytest.mark.parametrize("topology", TOPOLOGIES)
def test_texts_are_the_same_in_rings_of_any_size(topology, monkeypatch):
    model, draft = model_of(topology, window=9), model_of("linear", window=5)
    prompts, written = [b"one prompt" * 5, b"another prompt" * 7], []
    for slots in (64, 1024):
        monkeypatch.setattr(ring, "SLOTS", slots)
        for mode in ("ar", "speculative", "tree", "draft"):
            for engine in ("torch", "native"):
                more = {"draft": draft} if mode == "draft" else {}
                outs = generate_batch(model, prompts, 12, mode=mode, engine=engine, temperature=0.9, **more)
                written.append([(out.data, out.origins) for out in outs])
    half = len(written) // 2
    assert written[:half] == written[half:]


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("window", [9, 0])
def test_memory_follows_the_text_and_not_its_limit(engine, window):
    """With a limit of a hundred million bytes 24 GB were taken before the first one."""
    options = Options(mode="speculative", engine=engine)
    row = options.row(b"a", 0, 10**8)
    loop = options.loop(model_of("deepseek", window=window), [row])
    for _ in islice(loop.passes(), 100):
        pass
    assert len(row.data) >= 100 and not row.stopped_by
    assert slots_of(loop.engine) <= 64 + (64 if window else 2 * len(row.data))
    assert loop.ids.size <= 2 * (len(row.data) + loop.ahead)


def test_a_burst_makes_no_room_behind_the_end_of_its_text():
    """Its passes might draft hundreds of bytes; the text has but ten."""
    options = Options(mode="copy", engine="native")
    loop = options.loop(model_of("replicated", window=0), [options.row(b"ab" * 10, 0, 10)])
    loop.burst = 32
    loop.run()
    assert loop.engine.memory.slots == 64


def slots_of(engine):
    """By the memory that caches and head 1's hidden states take."""
    layers, width = sum(isinstance(module, Block) for module in engine.model.modules()), TINY.head_dim
    if isinstance(engine, NativeEngine):
        arrays, width = [*engine.memory.k, *engine.memory.v, engine.first_hidden], engine.memory.shape.width
    else:
        arrays = [x for cache in engine.caches.values() for x in (cache.k, cache.v)] + [engine.first_hidden]
    return sum(x.nbytes for x in arrays) / 4 / (2 * layers * TINY.kv_heads * width + TINY.dim)

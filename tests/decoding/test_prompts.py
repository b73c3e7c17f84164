"""Shared prompts and refilled slots: every row is what it is alone, and nothing is read twice."""

import copy
from collections import Counter
from ctypes import POINTER, c_int, cast
from functools import partial
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_loop import ENGINES, TOPOLOGIES, model_for
from test_recorded import traced

from bytemtp.decoding.chooser import Costs
from bytemtp.decoding.engines import recorded
from bytemtp.decoding.engines.native.engine import NativeEngine
from bytemtp.decoding.engines.recorded import RecordedEngine
from bytemtp.decoding.generate import Options, generate_batch

LONG = bytes(np.random.default_rng(0).integers(0, 256, 600, dtype=np.uint8))
PROMPTS = [b"", b"a", b"abc abc ab", LONG, LONG[:599], LONG[:513]]
MODES = ("ar", "speculative", "tree", "copy", "auto", "draft")
STEEP = Costs(tuple(1 + 0.06 * ids for ids in range(16)), heads=0.1)


@pytest.fixture(autouse=True)
def table(monkeypatch):
    monkeypatch.setattr("bytemtp.decoding.generate.costs_of", lambda *_, **__: STEEP)


def decode(model, prompts, sizes, slots=0, engine="auto", **more):
    """Rows of these prompts and limits, decoded so many at a time, and what was counted of each engine."""
    draft = model_for("parallel", 3, layers=4, window=5) if more.get("mode") == "draft" else None
    options = Options(engine=engine, **more)
    rows = [options.row(*row) for row in zip(prompts, range(len(prompts)), sizes, strict=True)]
    loop = options.loop(model, rows, draft, slots)
    counts = [watch(engine) for engine in (loop.engine, loop.drafter.engine)[: 1 + (draft is not None)]]
    loop.run()
    return rows, *counts


def watch(engine):
    """How many passes, and ids in them, it runs from now on."""
    counter, verify = Counter(), engine.verify

    def counted(start, ids, lengths, branches=None):
        counter.update(passes=1, ids=int(lengths.sum()))
        return verify(start, ids, lengths, branches)

    engine.verify = counted
    if isinstance(engine, NativeEngine):
        engine.run_passes = partial(counted_passes, counter, engine.run_passes)
    return counter


def counted_passes(counter, run, start, rows, *sizes, **options):
    done = run(start, rows, *sizes, **options)
    for row in rows:
        drafts = np.ctypeslib.as_array(cast(row.passes, POINTER(c_int)), (row.done, 4))[:, 0]
        counter["ids"] += row.done + int(drafts.sum())
    counter["passes"] += done
    return done


def told(row):
    """What a row is, but for the time it took."""
    return bytes(row.data), row.origins, row.stats(1.0), row.random.random()


@settings(max_examples=40)
@given(
    topology=st.sampled_from(TOPOLOGIES),
    prompts=st.lists(st.sampled_from(PROMPTS), min_size=1, max_size=7),
    sizes=st.lists(st.integers(0, 30), min_size=7, max_size=7),
    slots=st.integers(1, 7),
    mode=st.sampled_from(MODES),
    temperature=st.sampled_from([0.0, 0.9]),
    window=st.sampled_from([0, 9, 300]),
)
def test_a_row_is_what_it_is_alone(topology, prompts, sizes, slots, mode, temperature, window):
    """By the native engine all of it: bytes, passes, drafts and the state of its random numbers."""
    model, sizes = model_for(topology, window=window), sizes[: len(prompts)]
    options = {"mode": mode, "temperature": temperature, "stop": (b"\x07",), "engine": "native"}
    rows, *_ = decode(model, prompts, sizes, slots, **options)
    for number, row in enumerate(rows):
        alone = Options(**options).row(prompts[number], number, sizes[number])
        draft = model_for("parallel", 3, layers=4, window=5) if mode == "draft" else None
        Options(**options).loop(model, [alone], draft).run()
        assert told(row) == told(alone) and row.stopped_by


@settings(max_examples=12)
@given(
    topology=st.sampled_from(TOPOLOGIES),
    kind=st.sampled_from(["torch", "recorded"]),
    prompts=st.lists(st.sampled_from(PROMPTS), min_size=2, max_size=5),
    slots=st.integers(1, 5),
    mode=st.sampled_from(MODES),
    window=st.sampled_from([0, 9]),
)
def test_greedy_texts_of_tensor_engines_are_those_of_rows_alone(topology, kind, prompts, slots, mode, window):
    model, sizes = model_for(topology, window=window), [3, 16, 1, 0, 9][: len(prompts)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(recorded, "record_pass", traced)
        rows, *_ = decode(model, prompts, sizes, slots, engine=kind, mode=mode)
    for row, prompt, size in zip(rows, prompts, sizes, strict=True):
        (plain,) = generate_batch(model, [prompt], size, engine="torch")
        assert (bytes(row.data), row.stopped_by) == (plain.data, plain.stats["stopped_by"])


@pytest.mark.parametrize(("kind", "window"), [*product(ENGINES, [9, 300, 10**6]), ("recorded", 300)])
@pytest.mark.parametrize("topology", TOPOLOGIES)
def test_a_copied_row_is_a_read_one(topology, kind, window, monkeypatch):
    """Also after further passes, of ids and drafts: natively bit for bit."""
    monkeypatch.setattr(recorded, "record_pass", traced)
    model, count = model_for(topology), 150
    make = ENGINES.get(kind, lambda model, rows, window: RecordedEngine(model, rows, window, 8))
    ids = np.random.default_rng(1).integers(0, 256, (1, 200)).repeat(3, 0)
    read, copied = make(model, 3, window), make(model, 3, window)
    for engine, lengths in ((read, np.full(3, count)), (copied, np.array([0, count, 0]))):
        engine.verify(np.zeros(3, np.int64), ids[:, :count], lengths)
        for _ in engine.drafts(np.zeros(3, np.int64), lengths, 4, ids):
            pass
    copied.copy_row(1, 0)
    copied.copy_row(1, 2)
    close = 0.0 if kind == "native" else 1e-4
    for start in range(count, 170, 5):
        at, lengths = np.full(3, start), np.array([5, 3, 4])
        chunk = ids[:, start : start + 5]
        for one, other in zip(
            [read.verify(at, chunk, lengths), *read.drafts(at, lengths, 4, ids)],
            [copied.verify(at, chunk, lengths), *copied.drafts(at, lengths, 4, ids)],
            strict=True,
        ):
            used = one.reshape(3, -1, one.shape[-1])[:, :3, :257], other.reshape(3, -1, other.shape[-1])[:, :3, :257]
            np.testing.assert_allclose(*used, atol=close, rtol=close)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("mode", ["ar", "speculative", "draft"])
def test_a_shared_prompt_is_read_once(mode, engine):
    """Whatever the number of rows and slots; one that is not shared leaves its last stretch to the first pass."""
    model, size = model_for("replicated", window=300), 8
    for slots in (1, 3, 8):
        rows, *counts = decode(model, [LONG] * 8, [size] * 8, slots, engine=engine, mode=mode, temperature=0.9)
        stats = [row.stats(1.0) for row in rows]
        assert counts[0]["ids"] == len(LONG) + sum(one["forwards"] + one["num_draft_tokens"] for one in stats)
        assert all(count["ids"] < 2 * len(LONG) for count in counts)  # also by the model that drafts
    (row,), alone, *_ = decode(model, [LONG], [size], engine=engine, mode=mode)
    assert alone["passes"] == 1 + row.stats(1.0)["forwards"]  # 601 ids are a stretch of 512 and the first pass's


def test_slots_are_refilled_and_nobody_waits():
    """Rows of very different lengths: the passes are those of the fullest slot, and each row has its own end."""
    model, sizes = model_for("parallel"), [40, 2, 2, 2, 2, 30, 2, 2, 2, 2, 2, 2]
    rows, counter = decode(model, [b"abc"] * 12, sizes, 2, mode="ar", temperature=0.9, engine="native")
    forwards = [row.stats(1.0)["forwards"] for row in rows]
    ends, passes = [0, 0], 0
    for count in forwards:  # the next row goes to the slot that is free first
        free = ends.index(min(ends))
        ends[free] += count
        passes = max(ends)
    assert counter["passes"] == passes + 1  # one for the prompt
    batches = sum(max(forwards[i : i + 2]) for i in range(0, 12, 2))
    assert passes < batches


def test_a_ring_that_has_gone_round_still_holds_the_prompt():
    """Rows much longer than the window, behind a prompt longer than it; a ring made for one row would have lost it."""
    model, prompts, sizes = model_for("deepseek", window=9), [LONG[:100]] * 5, [500, 500, 500, 500, 20]
    options = {"mode": "speculative", "temperature": 0.9, "engine": "native"}
    rows, _ = decode(model, prompts, sizes, 1, **options)
    for number, (row, size) in enumerate(zip(rows, sizes, strict=True)):
        alone = Options(**options).row(prompts[0], number, size)
        Options(**options).loop(model, [alone]).run()
        assert told(row) == told(alone)
    assert max(len(row.data) for row in rows[:4]) > 256  # the slots of a ring


def test_the_native_engine_gives_rows_without_ids_no_memory_to_move():
    """Growing keeps what was read, and other rows stay empty."""
    engine = NativeEngine(model_for("causal"), 2, 10**6)
    ids = np.random.default_rng(2).integers(0, 256, (2, 300))
    engine.verify(np.zeros(2, np.int64), ids[:, :200], np.array([200, 0]))
    before = copy.deepcopy(engine.memory.k)
    engine.verify(np.array([200, 0]), ids[:, 200:300], np.array([100, 0]))
    blocks = 200 // engine.lanes
    for old, new in zip(before, engine.memory.k, strict=True):
        np.testing.assert_array_equal(new[0, :, :blocks], old[0, :, :blocks])
        assert new.shape[2] > old.shape[2] and not new[1].any()

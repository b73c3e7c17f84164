"""RecordedEngine passes: the same numbers as unrecorded ones, whatever was written into the recording.

CUDA graphs need a GPU.  Their trap does not: what a pass reads from Python (a number of slots, which tensor the heads
read) is fixed when it is recorded.  So here passes are recorded as traces, which fix the same things.
"""

import gc
import weakref
from dataclasses import replace
from itertools import zip_longest
from typing import get_args

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_native import drafts_of
from torch.fx.experimental.proxy_tensor import make_fx

from bytemtp.common.settings import ModelConfig, Topology
from bytemtp.common.vocab import EOT
from bytemtp.decoding import ahead, loop, verdicts
from bytemtp.decoding.ahead import AheadLoop
from bytemtp.decoding.engines import recorded, ring
from bytemtp.decoding.engines.recorded import RecordedEngine
from bytemtp.decoding.engines.tensor import TensorEngine
from bytemtp.decoding.generate import Options, generate, generate_batch, generate_stream
from bytemtp.decoding.verdicts import MARGIN
from bytemtp.model.model import ByteMTP

TOPOLOGIES = get_args(Topology)
TINY = ModelConfig(dim=32, layers=5, attention_heads=2, ffn_dim=48, n_future=4)
ORIGINAL = recorded.record_pass
TRACED = []


def traced(function, inputs):
    """Like a CUDA graph: fixed addresses of inputs and results, nothing read from Python again."""
    held = [x.clone() for x in inputs]
    graph = make_fx(lambda *inputs: function(*inputs))(*held)
    results = graph(*held)
    TRACED.append(graph)

    def replay(*values):
        for place, value in zip(held, values, strict=True):
            place.copy_(value)
        flat, new = torch.utils._pytree.tree_leaves(results), torch.utils._pytree.tree_leaves(graph(*held))
        for place, value in zip(flat, new, strict=True):
            place.copy_(value)
        return results

    return replay


@pytest.fixture(autouse=True, scope="module")
def _traces():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(recorded, "record_pass", traced)
        patch.setattr(ring, "SLOTS", 32)
        patch.setattr(ring, "STEP_BACK", 8)
        yield


@settings(max_examples=6)
@given(
    topology=st.sampled_from(TOPOLOGIES),
    chunks=st.lists(st.tuples(st.integers(1, 6), st.integers(0, 3), st.booleans()), min_size=2, max_size=8),
    window=st.sampled_from([64, 5]),
)
def test_passes_and_drafts_are_those_of_tensor_operations(topology, chunks, window):
    """Chunks of 1 to 6 ids, some longer than what is recorded; rows of different lengths; some ids are taken back.

    With the short window the caches go round after 32 ids."""
    model = ByteMTP(replace(TINY, topology=topology)).eval()
    plain, fast = TensorEngine(model, 2, window), RecordedEngine(model, 2, window, 4)
    start = np.array([0, 0])
    for number, (length, fewer, accept_all) in enumerate(2 * chunks):
        ids = np.random.default_rng(number).integers(0, 256, (2, length))
        lengths = np.array([length, max(1, length - fewer)])
        first, second = (engine.verify(start, ids, lengths) for engine in (plain, fast))
        for row in range(2):
            np.testing.assert_allclose(second[row, : lengths[row]], first[row, : lengths[row]], atol=1e-5, rtol=1e-4)
        accepted = lengths if accept_all else np.ones(2, dtype=np.int64)
        first, second = (drafts_of(engine, start, accepted, 4) for engine in (plain, fast))
        for i in (1, 2, 3):
            np.testing.assert_allclose(second[i], first[i], atol=1e-5, rtol=1e-4)
        start = start + accepted


@pytest.mark.parametrize("topology", TOPOLOGIES)
def test_greedy_decoding_writes_the_same_and_records_few_passes(topology):
    model = ByteMTP(replace(TINY, topology=topology)).eval()
    TRACED.clear()
    for mode in ("ar", "speculative"):
        out = generate(model, b"a prompt", 40, mode=mode, engine="recorded")
        assert out.data == generate(model, b"a prompt", 40, engine="torch").data
        assert out.stats["engine"] == "recorded"
        assert out.stats["accepted"] == generate(model, b"a prompt", 40, mode=mode, engine="torch").stats["accepted"]
    reached = -(-(1 + 8 + 40) // 32)
    # A pass over one id, over four, drafts after each, and passes that decide, with drafts and without; by stretches.
    assert 0 < len(TRACED) <= 6 * reached


@settings(max_examples=12)
@given(
    topology=st.sampled_from(TOPOLOGIES),
    mode=st.sampled_from(["ar", "speculative"]),
    prompts=st.lists(st.binary(max_size=12), min_size=1, max_size=4),
    slots=st.integers(0, 2),
    size=st.integers(0, 40),
    margin=st.sampled_from([MARGIN, 0.05]),
    stop=st.sampled_from([(), (b"a",)]),
    has_table=st.booleans(),
    reach=st.sampled_from([0, 11]),
)
def test_deciding_on_the_device_changes_no_byte(topology, mode, prompts, slots, size, margin, stop, has_table, reach):
    """Rows that wait, stop early, share prompts; with the wide margin most passes end in a near tie."""
    model = ByteMTP(replace(TINY, topology=topology, transitions=has_table and topology != "deepseek")).eval()
    model.trained_length = reach
    if model.transitions is not None:
        torch.nn.init.normal_(model.transitions, std=3.0)
    plain = [generate(model, prompt, size, stop=stop, engine="torch") for prompt in prompts]
    with pytest.MonkeyPatch.context() as patch:
        for module in (ahead, verdicts):
            patch.setattr(module, "MARGIN", margin)
        chosen = Options(mode=mode, stop=stop, engine="recorded")
        rows = [chosen.row(prompt, number, size) for number, prompt in enumerate(prompts)]
        decoding = chosen.loop(model, rows, slots=slots)
        assert isinstance(decoding, AheadLoop) == (topology != "deepseek" or mode == "ar")
        decoding.run()
    for row, text in zip(rows, plain, strict=True):
        assert (bytes(row.data), row.stopped_by) == (text.data, text.stats["stopped_by"])


@pytest.mark.parametrize("topology", ["branched", "parallel", "deepseek"])
@pytest.mark.parametrize("mode", ["ar", "speculative"])
def test_the_device_draws_by_the_same_law(topology, mode):
    """Each byte's place in the law of what may follow the text before it, likeliest first, is uniform."""
    model = ByteMTP(replace(TINY, topology=topology, transitions=topology == "branched")).eval()
    with torch.no_grad():  # all ids look alike, and all heads say what head 1 says: then many drafts stay
        model.embed.weight.mul_(0.3).add_(torch.randn(TINY.dim))
        for matrix in model.unembed[1:]:
            matrix.weight.copy_(model.unembed[0].weight)
        if model.transitions is not None:
            torch.nn.init.normal_(model.transitions, std=0.01)
    options = Options(mode=mode, temperature=0.3, seed=3, engine="recorded")
    rows = [options.row(b"ab", number, 12) for number in range(300)]
    decoding = options.loop(model, rows, slots=200)
    assert isinstance(decoding, AheadLoop) == (topology != "deepseek" or mode == "ar")
    decoding.run()
    places, random = [], np.random.default_rng(0)
    for row in rows:
        ids = torch.tensor([[EOT, *b"ab", *row.data, *([EOT] if row.stopped_by == "endoftext" else [])]])
        laws = torch.softmax(model(ids)[0, 0].detach().double() / 0.3, -1)[2:-1]
        for law, id_ in zip(laws, ids[0, 3:], strict=True):
            places.append(float(law[law > law[id_]].sum() + law[id_] * random.random()))
    assert len(places) > 3000
    distance = np.abs(np.sort(places) - (np.arange(len(places)) + 0.5) / len(places)).max()
    assert distance < 2.2 / len(places) ** 0.5  # Kolmogorov: more once in 8,000 times
    if mode == "speculative" and isinstance(decoding, AheadLoop):
        assert sum(row.stats(1.0)["num_accepted_draft_tokens"] for row in rows) > 500


def test_passes_are_recorded_once_for_all_texts(monkeypatch):
    """Also for one that is written while another one is: each has caches of its own."""
    monkeypatch.setattr(recorded, "KEEPING", ("cuda", "cpu"))
    model = ByteMTP(TINY).eval()
    plain = [generate(model, prompt, 40, engine="torch").data for prompt in (b"one", b"two")]
    options = dict(mode="speculative", engine="recorded")
    assert generate(model, b"one", 40, **options).data == plain[0]
    TRACED.clear()
    assert generate(model, b"two", 40, **options).data == plain[1]
    assert not TRACED
    streams = [generate_stream(model, prompt, 40, **options) for prompt in (b"one", b"two")]
    pieces = [list(pair) for pair in zip_longest(*streams, fillvalue=b"")]
    assert [b"".join(parts) for parts in zip(*pieces, strict=True)] == plain
    with torch.no_grad():
        model.embed.weight.mul_(-1)
    TRACED.clear()
    assert generate(model, b"two", 40, **options).data == generate(model, b"two", 40, engine="torch").data
    assert TRACED


@pytest.mark.parametrize("window", [0, 40])
def test_caches_that_grew_are_not_given_back_with_old_passes(monkeypatch, window):
    """A piece of a prompt that was longer than expected made the caches anew, and the next text ran on the old ones."""
    monkeypatch.setattr(recorded, "KEEPING", ("cuda", "cpu"))
    monkeypatch.setattr(ring, "PIECE", 8)
    monkeypatch.setattr(loop, "PREFILL", 64)
    model = ByteMTP(replace(TINY, window=window)).eval()
    for prompt, size in ((b"short", 100), (b"long" * 24, 9), (b"short", 100)):
        options = dict(mode="speculative", engine="recorded")
        assert generate(model, prompt, size, **options).data == generate(model, prompt, size, engine="torch").data


@pytest.mark.parametrize(("size", "stop"), [(1, ()), (2, ()), (10, ()), (11, ()), (40, (b"rrrrrrr",))])
def test_the_end_of_a_text_is_counted_as_by_the_host(size, stop):
    """With drafts that are all right: the last byte is head 1's, and no more is drafted than can stay."""
    model = ByteMTP(replace(TINY, topology="replicated")).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(1.0 if parameter.dim() == 1 or parameter is model.embed.weight else 0.0)
        for matrix in model.unembed:
            matrix.weight[ord("r")] = 1
    options = dict(mode="speculative", stop=stop)
    fast, slow = (generate(model, b"a", size, engine=engine, **options) for engine in ("recorded", "torch"))
    assert (fast.data, fast.origins) == (slow.data, slow.origins)
    assert set(slow.data) <= set(b"r") and len(slow.data) == (0 if stop else size)
    for name in slow.stats.keys() - {"engine", "seconds", "prompt_seconds", "bytes_per_s"}:
        assert fast.stats[name] == slow.stats[name], name


def test_a_model_can_be_forgotten(monkeypatch):
    monkeypatch.setattr(recorded, "KEEPING", ("cuda", "cpu"))
    model = ByteMTP(TINY).eval()
    generate(model, b"one", 20, engine="recorded")
    gone = weakref.ref(model)
    del model
    gc.collect()
    assert gone() is None


def test_a_tree_and_a_batch():
    model = ByteMTP(TINY).eval()
    for mode in ("tree", "speculative"):
        fast = generate_batch(model, [b"one", b"another"], 20, mode=mode, engine="recorded")
        plain = generate_batch(model, [b"one", b"another"], 20, engine="torch")
        assert [out.data for out in fast] == [out.data for out in plain]


@pytest.mark.slow
@pytest.mark.compiled
def test_torch_compile_records_on_a_cpu():
    model = ByteMTP(replace(TINY, topology="parallel")).eval()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(recorded, "record_pass", ORIGINAL)
        for mode in ("ar", "speculative"):
            out = generate(model, b"a prompt", 12, mode=mode, engine="recorded")
            assert out.data == generate(model, b"a prompt", 12, engine="torch").data


@pytest.mark.gpu
@pytest.mark.parametrize("topology", TOPOLOGIES)
def test_cuda_graphs_write_the_same_bytes(topology, monkeypatch):
    monkeypatch.setattr(recorded, "record_pass", ORIGINAL)
    model = ByteMTP(replace(TINY, topology=topology)).eval().cuda()
    plain = generate(model, b"a prompt", 300, engine="torch").data
    for mode in ("ar", "speculative"):
        assert generate(model, b"a prompt", 300, mode=mode, engine="recorded").data == plain


@pytest.mark.gpu
def test_cuda_graphs_run_in_bfloat16(monkeypatch):
    monkeypatch.setattr(recorded, "record_pass", ORIGINAL)
    model = ByteMTP(TINY).eval().cuda()
    model.use(dtype=torch.bfloat16)
    out = generate(model, b"a prompt", 50, mode="speculative", engine="recorded")
    assert out.stats["bytes"] == 50 or out.stats["stopped_by"] == "endoftext"

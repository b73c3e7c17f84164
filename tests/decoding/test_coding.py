"""The model as an arithmetic coder: any bytes come back, whatever drafts; what is not right is told."""

import copy
import math
import sys
from contextlib import suppress
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from test_loop import ENGINES, TOPOLOGIES, model_for

import bytemtp
from bytemtp.common.errors import UserError
from bytemtp.decoding.chooser import Costs
from bytemtp.decoding.coding import codec, container, laws
from bytemtp.decoding.coding.codec import decode, encode
from bytemtp.decoding.coding.container import MOST, NUMBER, ROWS, header_for, pack, sealed, unpack
from bytemtp.decoding.coding.laws import TOTAL, Reading, Writing, counts_of
from bytemtp.decoding.engines.native import library as native_library
from bytemtp.decoding.engines.tensor import TensorEngine
from bytemtp.decoding.generate import generate

TEXTS = st.lists(st.one_of(st.binary(max_size=6), st.sampled_from([b"abcabd", b"x = "])), max_size=14).map(b"".join)
LOGITS = arrays.arrays(
    np.float32, st.tuples(st.integers(1, 9), st.just(264)), elements=st.floats(-60, 60, width=32), fill=st.just(-3)
)
COSTS = Costs(tuple(1e-3 * (1 + 0.06 * ids) for ids in range(16)), heads=1e-4)
MODEL = model_for("parallel")
TEXT = b"a rose is a rose is a rose" + bytes(range(250, 256))


@pytest.fixture(scope="module", autouse=True)
def _costs():
    """Mode "auto" does not measure this machine."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("bytemtp.decoding.generate.costs_of", lambda *_, **__: COSTS)
        yield


@pytest.fixture(autouse=True)
def short_segments(monkeypatch):
    """Several of them, and several blocks, in texts of a few dozen bytes."""
    for name, value in (("LEAST", 8), ("MOST", 20), ("ROWS", 3)):
        monkeypatch.setattr(container, name, value)


def one_segment(monkeypatch):
    monkeypatch.setattr(container, "LEAST", 1000)
    monkeypatch.setattr(container, "MOST", 1000)


@pytest.fixture
def by_tensors(monkeypatch):
    """As where there is no compiler."""
    monkeypatch.setattr(codec, "engine_kind", lambda *_: TensorEngine)


@settings(max_examples=40)
@given(
    engine=st.sampled_from(sorted(ENGINES)),
    topology=st.sampled_from(TOPOLOGIES),
    heads=st.sampled_from([1, 4]),
    transitions=st.booleans(),
    window=st.sampled_from([0, 6]),
    text=TEXTS,
)
def test_any_bytes_come_back_whatever_drafts(engine, topology, heads, transitions, window, text):
    """A byte a pass is the obvious way; drafts change no byte of it."""
    model = model_for(topology, n_future=heads, transitions=transitions, window=window)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(codec, "engine_kind", lambda *_: ENGINES[engine])
        compressed = bytemtp.compress(model, text)
        assert unpack(compressed, "")[0].arithmetic == {"native": "native", "torch": "cpu"}[engine]
        for mode in ("ar", "speculative", "copy", "auto"):
            assert decode(model, compressed, mode=mode).data == text
        assert bytemtp.decompress(model, compressed) == text


@pytest.mark.parametrize("engine", ENGINES)
def test_as_many_threads_as_you_like(engine, monkeypatch):
    """Sums of tensor operations hang on their number: both sides have one."""
    monkeypatch.setattr(codec, "engine_kind", lambda *_: ENGINES[engine])
    model, there, seen = model_for("replicated", n_future=8), torch.get_num_threads(), set()
    monkeypatch.setattr(codec.CodingLoop, "code", noting_threads(codec.CodingLoop.code, seen))
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        try:
            assert bytemtp.decompress(model, bytemtp.compress(model, TEXT)) == TEXT
            assert torch.get_num_threads() == threads
        finally:
            torch.set_num_threads(there)
    assert seen == ({1} if engine == "torch" else {1, 2, 3})


def noting_threads(code, seen):
    def noted(loop, tell):
        seen.add(torch.get_num_threads())
        return code(loop, tell)

    return noted


def test_without_a_compiler_the_engine_that_is_missing_is_named(monkeypatch):
    compressed = bytemtp.compress(MODEL, TEXT)
    monkeypatch.setattr(native_library, "compiler", lambda: None)
    monkeypatch.setattr(codec, "library", native_library.library.__wrapped__)
    with pytest.raises(UserError, match=r"was compressed by the native engine, which does not work here: no C\+\+ com"):
        bytemtp.decompress(MODEL, compressed)


@pytest.mark.parametrize("engine", ENGINES)
def test_eight_heads(engine, monkeypatch):
    monkeypatch.setattr(codec, "engine_kind", lambda *_: ENGINES[engine])
    model = model_for("replicated", n_future=8)
    assert bytemtp.decompress(model, bytemtp.compress(model, TEXT)) == TEXT


@pytest.mark.parametrize("mode", ["speculative", "copy", "auto"])
def test_drafts_save_passes(mode, monkeypatch):
    """Of a text that the model itself would write, so that heads are often right, and that repeats itself."""
    one_segment(monkeypatch)
    model = model_for("parallel", 1)
    text = generate(model, b"", 60).data
    compressed = encode(model, text)
    assert compressed.passes == 2 and len(text) == 60, "one for the first byte, one for all others"
    assert decode(model, compressed.data, mode="ar").passes == 60
    assert decode(model, compressed.data, mode=mode).passes < 45


def test_how_many_ids_a_pass_has_changes_no_bit(monkeypatch):
    """The native engine: what a pass of compressing computes is what many passes of decompressing do."""
    compressed = bytemtp.compress(MODEL, TEXT)
    for wide in (2, 3, 7):
        monkeypatch.setattr(codec, "WIDE", wide)
        assert bytemtp.compress(MODEL, TEXT) == compressed


@pytest.mark.parametrize("topology", TOPOLOGIES)
def test_tensor_operations_see_the_same_passes_on_both_sides(topology, by_tensors, monkeypatch):
    """They round by the shape of a pass, so nothing else makes the laws the same."""
    passes: list[list[list[int]]] = [[]]
    verify = TensorEngine.verify

    def watched(self, start, ids, lengths, branches=None):
        passes[-1].append([*start.tolist(), *lengths.tolist(), *ids.flatten().tolist()])
        return verify(self, start, ids, lengths, branches)

    monkeypatch.setattr(TensorEngine, "verify", watched)
    compressed = bytemtp.compress(model_for(topology), TEXT)
    passes.append([])
    assert bytemtp.decompress(model_for(topology), compressed) == TEXT
    assert passes[0] == passes[1] != []


@given(logits=LOGITS)
def test_counts_are_probabilities_out_of_a_power_of_two(logits):
    """EOT and the padding have none of them, every byte has one, and the sum is exact."""
    counts = counts_of(logits)
    assert (counts.sum(1) == TOTAL).all() and (counts >= 1).all()
    wide = np.exp(logits[:, :256].astype(np.float64) - logits[:, :256].max(1, keepdims=True))
    exact = TOTAL * wide / wide.sum(1, keepdims=True)
    rest = np.arange(256) != counts.argmax(1)[:, None]
    assert (np.abs(counts - exact) <= 258).all() and (np.abs(counts - exact) <= 2 + exact / 2**16)[rest].all()


@given(logits=LOGITS)
def test_counts_of_a_place_depend_on_nothing_else(logits):
    np.testing.assert_array_equal(counts_of(logits), np.concatenate([counts_of(one[None]) for one in logits]))


def test_logits_that_are_not_finite_are_told():
    broken = copy.deepcopy(MODEL)
    with torch.no_grad():
        broken.norm.weight.fill_(torch.nan)
    with pytest.raises(UserError, match="not finite: its weights are damaged"):
        bytemtp.compress(broken, TEXT)


@given(logits=LOGITS, text=st.binary(min_size=1, max_size=60))
def test_a_stream_is_as_long_as_its_laws_say_and_gives_the_text_back(logits, text):
    """64 bits of each stream are its end; the coder's state rounds a law by 1/256 at worst."""
    counts = counts_of(logits)[np.arange(len(text)) % len(logits)]
    writing = Writing(text)
    for law in counts:
        writing.decide(law[None], [])
    bits = -sum(math.log2(law[byte] / TOTAL) for law, byte in zip(counts, text, strict=True))
    assert bits - 64 <= 8 * len(writing.stream) <= bits + 64 + 0.006 * len(text)
    reading = Reading(writing.stream)
    assert bytes(id_ for law in counts for id_ in reading.decide(law[None], [])) == text


@given(logits=LOGITS, drafts=st.lists(st.integers(0, 3), max_size=8), text=st.lists(st.integers(0, 3), min_size=9))
def test_both_sides_take_the_same_drafts(logits, drafts, text):
    """Those that are right, up to the first wrong one, and the byte behind them."""
    counts = counts_of(logits)[np.zeros(len(drafts) + 1, int)]
    writing = Writing(bytes(text))
    taken = writing.decide(counts, drafts)
    right = next((i for i, draft in enumerate(drafts) if draft != text[i]), len(drafts))
    assert taken == text[: right + 1] == Reading(writing.stream).decide(counts, drafts)


@torch.no_grad()
def test_a_file_is_as_long_as_the_model_says(monkeypatch):
    """One pass over all of it, in float64, is the obvious way to find out how many bits it takes."""
    one_segment(monkeypatch)
    wide = copy.deepcopy(MODEL).double()
    law = wide(torch.tensor([[256, *TEXT]]))[0, 0, :-1, :256].log_softmax(-1) / math.log(2)
    bits = -float(law[torch.arange(len(TEXT)), torch.tensor([*TEXT])].sum())
    _, (block,) = unpack(bytemtp.compress(MODEL, TEXT), "")
    assert [len(block.streams), 8 * len(block.streams[0])] == [1, pytest.approx(bits, abs=64 + 0.006 * len(TEXT))]


@given(length=st.integers(0, 10**7))
def test_segments_are_all_of_the_text_once(length):
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (("LEAST", 1 << 14), ("MOST", 1 << 18), ("ROWS", 16)):
            patch.setattr(container, name, value)
        blocks = list(header_for(length, "native", bytes(8)).blocks())
    sizes = [size for block in blocks for size in block]
    assert sum(sizes) == length and all(0 < size <= 1 << 18 for size in sizes)
    assert len(set(sizes[:-1])) <= 1 and all(len(block) == 16 for block in blocks[:-1])
    assert length < 1 << 14 or min(sizes[:-1], default=1 << 18) > 1 << 13


@pytest.mark.parametrize("length", [0, 1, 3])
def test_few_bytes_take_little_more_than_a_header(length):
    compressed = bytemtp.compress(MODEL, TEXT[:length])
    assert len(compressed) <= 31 + 16 * (length > 0)
    assert bytemtp.decompress(MODEL, compressed) == TEXT[:length]


def compressed_text() -> bytes:
    return bytemtp.compress(MODEL, TEXT)


def test_every_damaged_byte_is_told():
    compressed = compressed_text()
    for place in range(len(compressed)):
        damaged = bytearray(compressed)
        damaged[place] ^= 1 << place % 8
        with pytest.raises(UserError, match=r"^the compressed data (is damaged or cut off|is no compressed file)"):
            bytemtp.decompress(MODEL, bytes(damaged))


def test_what_is_cut_off_or_behind_the_end_is_told():
    compressed = compressed_text()
    for wrong in (*(compressed[:size] for size in range(len(compressed))), compressed + b"\0", compressed * 2):
        with pytest.raises(UserError, match=r"^the compressed data (is damaged or cut off|is no compressed file)"):
            bytemtp.decompress(MODEL, wrong)


@pytest.mark.parametrize("field", ["rows", "segment"])
def test_no_more_is_decoded_than_a_block_can_hold(field):
    """Some forty bytes could claim four gigabytes, and they were decoded before the checksum was looked at."""
    header, blocks = unpack(compressed_text(), "")
    larger = replace(header, **{field: {"rows": ROWS, "segment": MOST}[field] + 1})
    with pytest.raises(UserError, match="is damaged or cut off"):
        unpack(pack(larger, blocks), "it")


@settings(max_examples=100)
@given(place=st.integers(5, 10**6), value=st.integers(1, 255), cut=st.integers(0, 9))
def test_changes_with_a_right_checksum_never_give_other_bytes(place, value, cut):
    """As if somebody had meant it: what is inside still has to fit."""
    content = bytearray(compressed_text()[: -NUMBER.size - cut or None])
    content[place % len(content)] ^= value
    with suppress(UserError):
        assert bytemtp.decompress(MODEL, sealed(bytes(content))) == TEXT


def other_models() -> dict[str, bytemtp.ByteMTP]:
    shorter, rounded, nudged = (copy.deepcopy(MODEL) for _ in range(3))
    shorter.trained_length = 6
    rounded.use(dtype=torch.bfloat16)
    with torch.no_grad():
        nudged.embed.weight[7, 3] += 1e-3
    return {
        "seed": model_for("parallel", 1),
        "topology": model_for("causal"),
        "heads": model_for("parallel", n_future=1),
        "theta": model_for("parallel", rope_theta=5000.0),
        "a shorter view": shorter,
        "dtype": rounded,
        "one weight": nudged,
    }


@pytest.mark.parametrize("what", other_models())
def test_another_model_is_refused(what):
    with pytest.raises(UserError, match=r"^the compressed data was compressed with another model"):
        bytemtp.decompress(other_models()[what], compressed_text())


def test_another_device_is_told():
    header, blocks = unpack(compressed_text(), "")
    with pytest.raises(UserError, match=r"^the compressed data was compressed on cuda, but the model is on cpu"):
        bytemtp.decompress(MODEL, pack(replace(header, arithmetic="cuda"), blocks))


@pytest.mark.parametrize("engine", ENGINES)
def test_other_numbers_are_told(engine, monkeypatch):
    """As on a machine that rounds otherwise: here another model stands for it."""
    monkeypatch.setattr(codec, "engine_kind", lambda *_: ENGINES[engine])
    monkeypatch.setattr(codec, "digest_of", lambda _: bytes(8))
    with pytest.raises(UserError, match=r"^the compressed data does not come out as it went in"):
        bytemtp.decompress(model_for("parallel", 1), compressed_text())


def test_another_version_is_told():
    content = bytearray(compressed_text()[: -NUMBER.size])
    content[4] = 2
    with pytest.raises(UserError, match="has version 2, and this bytemtp reads version 1"):
        bytemtp.decompress(MODEL, sealed(bytes(content)))


def test_without_constriction_it_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "constriction", None)
    laws.constriction.cache_clear()
    with pytest.raises(UserError, match=r"pip install 'bytemtp\[compress\]'"):
        bytemtp.compress(MODEL, TEXT)
    monkeypatch.undo()
    laws.constriction.cache_clear()
    assert compressed_text()


@pytest.mark.parametrize("function", [bytemtp.compress, bytemtp.decompress])
def test_arguments_of_another_kind_are_told(function):
    with pytest.raises(UserError, match=r"must be bytes, such as text\.encode"):
        function(MODEL, "text")
    with pytest.raises(UserError, match="must be a model"):
        function("runs/demo", b"text")

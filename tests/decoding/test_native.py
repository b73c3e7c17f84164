"""The compiled step: near to tensor operations, and the same to the last bit however ids are put together.

All of it for each kind of processor that this one can stand for: step.cpp lays out vectors and panels by what there is.
"""

import platform
from dataclasses import replace
from itertools import accumulate, cycle, takewhile
from typing import get_args

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bytemtp.common.errors import UserError
from bytemtp.common.settings import ModelConfig, Topology
from bytemtp.decoding.engines import ring, select
from bytemtp.decoding.engines.engine import Branches
from bytemtp.decoding.engines.native import library as native_library
from bytemtp.decoding.engines.native.engine import NativeEngine, angles, supports
from bytemtp.decoding.engines.native.weights import packed
from bytemtp.decoding.engines.tensor import TensorEngine
from bytemtp.decoding.generate import generate
from bytemtp.model.layers import rope_at
from bytemtp.model.model import ByteMTP

TOPOLOGIES = get_args(Topology)
SHAPES = {
    "plain": ModelConfig(dim=32, layers=5, attention_heads=2, ffn_dim=48, n_future=4),
    "grouped, odd widths": ModelConfig(dim=48, layers=5, attention_heads=4, kv_heads=2, ffn_dim=50, n_future=4),
    "wide heads": ModelConfig(dim=144, layers=5, attention_heads=1, ffn_dim=64, n_future=4),
    "normed heads": ModelConfig(dim=48, layers=5, attention_heads=4, kv_heads=2, ffn_dim=50, n_future=4, qk_norm=True),
}
BUILDS = {"this processor": native_library.PROCESSOR}
WIDTHS = {"AVX2": (8, 16), "SSE": (4, 8)}
if platform.machine() == "x86_64":
    BUILDS |= {"SSE": ("-msse2",)}
    BUILDS |= {"AVX2": ("-mavx2", "-mfma")} if torch.cpu.get_capabilities().get("avx2") else {}


@pytest.fixture(autouse=True, scope="module", params=sorted(BUILDS))
def build(request):
    """The library as it is compiled for another processor; and short rings, which go round several times."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(native_library, "PROCESSOR", BUILDS[request.param])
        patch.setattr(ring, "SLOTS", 64)
        patch.setattr(ring, "STEP_BACK", 16)
        native_library.library.cache_clear()
        native_library.team.cache_clear()
        yield request.param
    native_library.library.cache_clear()
    native_library.team.cache_clear()


def model_of(shape, topology, seed=0):
    """Random norm scales, too: they are part of the packed matrices."""
    model = ByteMTP(replace(SHAPES[shape], topology=topology), seed).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.copy_(0.5 + torch.rand(parameter.shape, generator=generator))
    return model


def ids_of(seed, *shape):
    return np.random.default_rng(seed).integers(0, 256, shape)


def drafts_of(engine, start, accepted, heads, buffer=None):
    """Logits by head (1 is the second) behind the ids of `buffer`, or behind zeros; each head drafts the byte 65."""
    seen, ids, row = {}, np.zeros((len(start), 158), dtype=np.int64), np.arange(len(start))
    if buffer is not None:
        ids[:, : buffer.shape[1]] = buffer
    for i, logits in enumerate(engine.drafts(start, accepted, heads, ids), 1):
        seen[i] = logits.copy()
        ids[row, start + accepted + i] = 65
    return seen


@settings(max_examples=20)
@given(
    shape=st.sampled_from(sorted(SHAPES)),
    topology=st.sampled_from(TOPOLOGIES),
    lengths=st.lists(st.integers(1, 20), min_size=1, max_size=3),
    window=st.sampled_from([40, 7]),
)
def test_it_agrees_with_tensor_operations(shape, topology, lengths, window):
    """Two passes and drafts after each, rows of different lengths."""
    model = model_of(shape, topology)
    engines = [kind(model, len(lengths), window) for kind in (TensorEngine, NativeEngine)]
    start, count = np.zeros(len(lengths), dtype=np.int64), np.array(lengths)
    for seed in (0, 1):
        ids = ids_of(seed, len(lengths), max(lengths))
        first, second = (engine.verify(start, ids, count) for engine in engines)
        for row, length in enumerate(lengths):
            np.testing.assert_allclose(second[row, :length], first[row, :length], atol=2e-5, rtol=1e-4)
        first, second = (drafts_of(engine, start, count, 4) for engine in engines)
        for i in (1, 2, 3):
            np.testing.assert_allclose(second[i], first[i], atol=2e-5, rtol=1e-4)
        start = start + count


@settings(max_examples=20)
@given(
    shape=st.sampled_from(sorted(SHAPES)),
    topology=st.sampled_from(TOPOLOGIES),
    sizes=st.lists(st.integers(4, 40), min_size=1, max_size=6),
    mate=st.integers(0, 12),
    threads=st.integers(1, 3),
    window=st.sampled_from([10**10, 9, 30]),
)
def test_no_bit_depends_on_what_else_is_computed(shape, topology, sizes, mate, threads, window):
    """In pieces of any sizes, beside another row, on any number of threads, in caches that grow and go round: equal,
    not close."""
    model, ids = model_of(shape, topology), ids_of(5, 1, 150)
    cuts = list(takewhile(lambda cut: cut < 150, accumulate(cycle(sizes))))
    alone = NativeEngine(model, 1, window)
    whole = alone.verify(np.zeros(1, dtype=np.int64), ids, np.array([150]))
    expected = drafts_of(alone, np.zeros(1, dtype=np.int64), np.array([150]), 4, ids)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        engine = NativeEngine(model, 2, window)
        pieces = []
        for begin, end in zip([0, *cuts], [*cuts, 150], strict=True):
            both = np.concatenate([ids_of(begin, 1, 40)[:, : end - begin], ids[:, begin:end]])
            start, lengths = np.array([0, begin]), np.array([min(mate, end - begin), end - begin])
            pieces.append(engine.verify(start, both, lengths)[1])
            drafted = drafts_of(engine, start, lengths, 4, np.pad(ids[:, : end + 1], ((1, 0), (0, 0))))
    finally:
        torch.set_num_threads(before)
    np.testing.assert_array_equal(np.concatenate(pieces), whole[0])
    for i in (1, 2, 3):
        np.testing.assert_array_equal(drafted[i][1], expected[i][0])


def read(model, window, prompt):
    """An engine that has read it, in short pieces."""
    engine = NativeEngine(model, 1, window)
    for begin in range(0, prompt.shape[1], 10):
        piece = prompt[:, begin : begin + 10]
        engine.verify(np.array([begin]), piece, np.array([piece.shape[1]]))
    return engine


@pytest.mark.parametrize("window", [64, 3])
@pytest.mark.parametrize("topology", TOPOLOGIES)
@pytest.mark.parametrize("shape", ["plain", "normed heads"])
def test_an_id_in_a_tree_gets_the_bits_of_its_own_path(shape, topology, window):
    """Three branches behind a pending id, where the ring begins anew; every path alone as a chain, and the kept path
    goes on like one."""
    model, prompt = model_of(shape, topology), ids_of(1, 1, 125)
    parent, depth = [-1, 0, 0, 1, 1, 2, 3], [0, 1, 1, 2, 2, 2, 3]
    ids, at = ids_of(2, 1, 7), np.array([125])
    above = np.eye(7, dtype=np.bool_)
    for i in range(1, 7):
        above[i] |= above[parent[i]]
    tree = read(model, window, prompt)
    assert tree.shape.slots in (64, 128)
    logits = tree.verify(at, ids, np.array([7]), Branches(np.array([depth]), above[None]))
    for leaf in range(7):
        path = np.flatnonzero(above[leaf])
        chain = read(model, window, prompt)
        np.testing.assert_array_equal(chain.verify(at, ids[:, path], np.array([len(path)])), logits[:, path])
    tree.keep_path(at, path[None])
    more, at, length = ids_of(3, 1, 5), at + len(path), np.array([5])
    np.testing.assert_array_equal(tree.verify(at, more, length), chain.verify(at, more, length))


def test_vectors_are_as_wide_as_the_processor_has_them(build):
    """On one without AVX-512 vectors of 64 bytes once spilled: a pass over eight ids took 90 ms in place of 6."""
    found = native_library.library()
    widest = {"avx512_f": (16, 32), "avx2": (8, 16)}
    here = [widths for name, widths in widest.items() if torch.cpu.get_capabilities().get(name)]
    assert (found.lanes, found.panel) == WIDTHS.get(build, (here or [(4, 8)])[0])


def test_each_build_has_a_file_of_its_own():
    command = ["c++", *native_library.FLAGS]
    names = {native_library._fingerprint([*command, *flags]) for flags in BUILDS.values()}
    assert len(names) == len(BUILDS)


def test_angles_are_those_of_the_model_whatever_stretch_they_are_in():
    table = torch.cat(rope_at(torch.arange(3000), 24, 1e4, torch.float32), 1).numpy()
    some = np.array([2999, 0, 5, 1023, 1024, 2047, 2048])
    np.testing.assert_allclose(angles(some, 24, 1e4), table[some], atol=1e-6)


def test_changed_weights_are_packed_again():
    model = model_of("plain", "parallel")
    first = packed(model)
    assert packed(model) is first
    with torch.no_grad():
        model.norm.weight.mul_(2)
    assert packed(model) is not first


@pytest.mark.parametrize("topology", TOPOLOGIES)
@pytest.mark.parametrize("shape", ["grouped, odd widths", "normed heads"])
def test_both_engines_write_the_same(shape, topology):
    model = model_of(shape, topology)
    outs = [
        generate(model, b"same", 40, mode=mode, engine=engine).data
        for mode in ("ar", "speculative", "tree")
        for engine in ("native", "torch")
    ]
    assert len(set(outs)) == 1


def test_models_that_it_cannot_run_are_refused_or_left_to_tensor_operations():
    double = model_of("plain", "parallel").double()
    narrow = ByteMTP(ModelConfig(dim=24, layers=4, attention_heads=2, ffn_dim=48, n_future=2)).eval()
    for model in (double, narrow):
        assert not supports(model)
        assert generate(model, b"a", 4).stats["engine"] == "torch"
        with pytest.raises(UserError, match="the native engine runs float32 models"):
            generate(model, b"a", 4, engine="native")


def test_without_a_compiler_it_says_so_and_decodes_all_the_same(monkeypatch, capsys):
    model = model_of("plain", "parallel")
    expected = generate(model, b"a", 8).data
    monkeypatch.setattr(select, "compiler", lambda: None)
    assert generate(model, b"a", 8).data == expected
    assert "no C++ compiler" in capsys.readouterr().err


def test_a_compiler_that_fails_is_named(monkeypatch, tmp_path):
    broken = tmp_path / "c++"
    broken.write_text("#!/bin/sh\necho 'cannot find the standard library' >&2\nexit 1\n")
    broken.chmod(0o755)
    monkeypatch.setenv("CXX", str(broken))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(UserError, match=r"cannot compile step\.cpp: cannot find the standard library"):
        native_library.library.__wrapped__()


def test_a_library_with_another_layout_is_refused(monkeypatch, tmp_path):
    """A member more in step.cpp, unknown to library.py: read as it is, all that lies behind it would be garbage."""
    source = native_library.SOURCE.read_text().replace("int count, chunk;", "int count, chunk, extra, more;")
    changed = tmp_path / "step.cpp"
    changed.write_text(source)
    monkeypatch.setattr(native_library, "SOURCE", changed)
    monkeypatch.setattr(native_library, "FLAGS", ("-std=c++20", "-shared", "-fPIC", "-pthread"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(UserError, match=r"step\.cpp does not fit library\.py: size of Tokens is 72, not 64"):
        native_library.library.__wrapped__()


def test_many_steps_from_many_engines_at_once():
    """Threads of several engines, made and given up again."""
    model = model_of("plain", "replicated")
    expected = generate(model, b"x", 50).data
    assert all(generate(model, b"x", 50, mode="speculative").data == expected for _ in range(30))

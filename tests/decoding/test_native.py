"""The compiled step: near to tensor operations, and the same to the last bit however ids are put together.

All of it for each kind of processor that this one can stand for: step.cpp lays out vectors and panels by what there is.
In bfloat16 it is near to its own twin below, which rounds at the same places, and not to other tensor operations.
"""

import copy
import platform
from dataclasses import replace
from itertools import accumulate, cycle, takewhile
from typing import get_args

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from bytemtp.common.errors import UserError
from bytemtp.common.settings import ModelConfig, Topology
from bytemtp.decoding.engines import ring, select
from bytemtp.decoding.engines.engine import Branches
from bytemtp.decoding.engines.native import engine as native_engine
from bytemtp.decoding.engines.native import library as native_library
from bytemtp.decoding.engines.native.engine import NativeEngine, supports
from bytemtp.decoding.engines.native.weights import pack, packed
from bytemtp.decoding.engines.tensor import TensorEngine
from bytemtp.decoding.generate import generate
from bytemtp.model.heads import DeepSeekModule
from bytemtp.model.layers import NORM_EPSILON, Block, RMSNorm, rope_at
from bytemtp.model.model import ByteMTP

TOPOLOGIES = get_args(Topology)
DTYPES = [torch.float32, torch.bfloat16, torch.int8]
SHAPES = {
    "plain": ModelConfig(dim=32, layers=5, attention_heads=2, ffn_dim=48, n_future=4),
    "grouped, odd widths": ModelConfig(dim=48, layers=5, attention_heads=4, kv_heads=2, ffn_dim=50, n_future=4),
    "narrow heads": ModelConfig(dim=32, layers=5, attention_heads=4, ffn_dim=48, n_future=4),
    "wide heads": ModelConfig(dim=144, layers=5, attention_heads=1, ffn_dim=64, n_future=4),
    "normed heads": ModelConfig(dim=48, layers=5, attention_heads=4, kv_heads=2, ffn_dim=50, n_future=4, qk_norm=True),
}
BUILDS = {"this processor": native_library.PROCESSOR}
WIDTHS = {"AVX2": (8, 16), "SSE": (4, 8)}
if platform.machine() == "x86_64":
    BUILDS |= {"SSE": ("-msse2",)}
    # For which GCC would fuse some sums and products and not others (`native_library.GCC`).
    BUILDS |= {"AVX2": ("-mavx2", "-mfma", "-mtune=znver3")} if torch.cpu.get_capabilities().get("avx2") else {}


@pytest.fixture(autouse=True, scope="module", params=sorted(BUILDS))
def build(request):
    """The library as it is compiled for another processor; and short rings, which go round several times, and short
    stretches of angles."""
    caches = native_library.library, native_library.team, native_engine.angles, native_engine.stretch_of_angles
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(native_library, "PROCESSOR", BUILDS[request.param])
        patch.setattr(ring, "SLOTS", 64)
        patch.setattr(ring, "STEP_BACK", 16)
        patch.setattr(native_engine, "STRETCH", 32)
        for one in caches:
            one.cache_clear()
        yield request.param
    for one in caches:
        one.cache_clear()


def model_of(shape, topology, seed=0, dtype=torch.float32):
    """Random norm scales, too: they are part of the packed matrices."""
    model = ByteMTP(replace(SHAPES[shape], topology=topology), seed).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.copy_(0.5 + torch.rand(parameter.shape, generator=generator))
    model.use(dtype=dtype)
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


def nearest(x):
    return x.bfloat16().float()


class RoundedNorm(nn.Module):
    """The norm's scale is part of the matrices behind it."""

    def forward(self, x):
        return nearest(x) * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + NORM_EPSILON)


class RoundedLinear(nn.Module):
    """A matrix, with the scale of a norm in front of it, which has then rounded the input."""

    def __init__(self, linear, *norms):
        super().__init__()
        self.normed = bool(norms)
        self.weight = nearest(linear.weight.detach() * (torch.cat([norm.weight for norm in norms]) if norms else 1))

    def forward(self, x):
        return F.linear(x if self.normed else nearest(x), self.weight)


@torch.no_grad()
def rounded_twin(model):
    """The model in float32, with all matrices and all that is multiplied with them rounded to bfloat16."""
    twin = copy.deepcopy(model)
    twin.use()
    for block in twin.modules():
        if isinstance(block, Block):
            block.qkv = RoundedLinear(block.qkv, block.attention_norm)
            block.gate_up = RoundedLinear(block.gate_up, block.ffn_norm)
            block.attention_out, block.ffn_out = RoundedLinear(block.attention_out), RoundedLinear(block.ffn_out)
        if isinstance(block, DeepSeekModule):
            block.merge = RoundedLinear(block.merge, block.hidden_norm, block.embed_norm)
    unembed = [RoundedLinear(linear, twin.norm) for linear in twin.unembed]
    twin.links = nn.ModuleList(RoundedLinear(link) if isinstance(link, nn.Linear) else link for link in twin.links)
    for parent in list(twin.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, RMSNorm) and name not in ("q_norm", "k_norm"):  # these are no part of a matrix
                setattr(parent, name, RoundedNorm())
    twin.logits = lambda i, x: unembed[i % len(unembed)](twin.norm(x)) + twin.padding
    return twin


@pytest.mark.parametrize("topology", TOPOLOGIES)
@pytest.mark.parametrize("shape", sorted(SHAPES))
def test_in_bfloat16_it_agrees_with_a_twin_that_rounds_where_it_does(shape, topology):
    """Short passes of rows of different lengths, and drafts after each.

    Where sums in another order differ in their last bit, now and then a number is rounded to the next bfloat16, 2^-8
    away.  What depends on it then differs by some thousandths of the largest logit; most logits depend on none, and
    differ by float32's errors.  One rounding left out moves all of them by some ten-thousandths.
    """
    model = model_of(shape, topology, dtype=torch.bfloat16)
    errors = errors_against(rounded_twin(model), model)
    assert errors.max() < 0.02
    assert np.median(errors) < 1e-5


@pytest.mark.parametrize("topology", TOPOLOGIES)
@pytest.mark.parametrize("shape", sorted(SHAPES))
def test_in_int8_it_agrees_with_tensor_operations(shape, topology):
    """As above; a number that is rounded the other way is off by a 127th of the largest."""
    model = model_of(shape, topology, dtype=torch.int8)
    errors = errors_against(model, model)
    assert errors.max() < 0.2
    assert np.median(errors) < 1e-5


def test_in_int8_a_127th_of_almost_nothing_has_no_finite_inverse():
    """Gates and values of 1e-19 have products of 1e-38, which are all of a vector that is rounded."""
    model = model_of("plain", "parallel", dtype=torch.int8)
    with torch.no_grad():
        for block in model.trunk:
            block.gate_up.weight.mul_(3e-19)
    assert errors_against(model, model).max() < 0.2


def test_in_int8_what_is_not_finite_stays_so():
    """Nan was rounded to 0, and the logits were as if nothing were damaged."""
    model = model_of("plain", "parallel", dtype=torch.int8)
    with torch.no_grad():
        model.embed.weight[:128] = torch.nan
    ids, nothing = np.array([[200, 201, 5], [200, 5, 201], [3, 200, 201]]), np.zeros(3, dtype=np.int64)
    for engine in NativeEngine(model, 3, 40), TensorEngine(model, 3, 40):
        logits = engine.verify(nothing, ids, nothing + 3)
        damaged = (ids < 128).cumsum(1) > 0  # what follows reads it
        assert np.isnan(logits[..., :257]).any(2)[damaged].all()


def errors_against(twin, model):
    """Of the native engine, over the largest logit."""
    count, start, errors = np.array([1, 3, 2]), np.zeros(3, dtype=np.int64), []
    for seed in range(12):
        engines, ids = [NativeEngine(model, 3, 40), TensorEngine(twin, 3, 40)], ids_of(seed, 3, 3)
        native, tensor = (engine.verify(start, ids, count) for engine in engines)
        pairs = [(native[row, :length], tensor[row, :length]) for row, length in enumerate(count)]
        drafted = [drafts_of(engine, start, count, 4) for engine in engines]
        pairs += [(drafted[0][i], drafted[1][i]) for i in (1, 2, 3)]
        real = [(a[:, :257], b[:, :257]) for a, b in pairs]
        errors += [np.abs(a - b).max(1) / np.abs(b).max(1) for a, b in real]
    return np.concatenate(errors)


@given(
    x=st.lists(st.floats(-(2.0**127), 2.0**127, width=32), min_size=16, max_size=16),
    tie=st.integers(0, 15),
)
def test_numbers_are_rounded_to_the_nearest_bfloat16_and_ties_to_even(x, tie):
    """Multiplied with the unit matrix; one of them lies in the middle between two bfloat16.

    What is too small to be normal is zero for processors that multiply tiles or pairs.
    """
    x = np.array([x], np.float32)
    x.view(np.uint32)[0, tie] = x.view(np.uint32)[0, tie] & 0xFFFF0000 | 0x8000
    engine = NativeEngine(model_of("plain", "parallel", dtype=torch.bfloat16), 1, 8)
    out = engine._product(pack(torch.eye(16), torch.bfloat16), x, 16)
    found, expected = out[0], nearest(torch.from_numpy(x)).numpy()[0]
    normal = np.abs(expected) >= 2.0**-126
    np.testing.assert_array_equal(found[normal], expected[normal])
    assert set(found[~normal]) <= {0.0, *expected[~normal]}


@settings(max_examples=20)
@given(
    rows=st.integers(1, 20),
    size=st.integers(1, 20).map(lambda n: 16 * n),
    out=st.integers(1, 70),
    normed=st.booleans(),
    seed=st.integers(0, 99),
)
def test_a_product_in_bfloat16_errs_no_more_than_float32_sums_do(rows, size, out, normed, seed):
    """Of n exact products, n roundings: n 2^-24 of the sum of their absolute values; as much again for the norm."""
    generator = torch.Generator().manual_seed(seed)
    x, w, s = (torch.randn(shape, generator=generator) for shape in ((rows, size), (out, size), (size,)))
    engine = NativeEngine(model_of("plain", "parallel", dtype=torch.bfloat16), 1, 8)
    y = engine._product(pack(w, torch.bfloat16, s), x.numpy(), out, normed=normed)
    products = nearest(x)[:, None].double() * nearest(w * s).double()
    scale = torch.rsqrt(x.double().pow(2).mean(1, keepdim=True) + NORM_EPSILON) if normed else 1
    bound = 2 * (size + 4) * 2**-24 * products.abs().sum(2) * scale
    assert ((torch.from_numpy(y) - products.sum(2) * scale).abs() <= bound).all()


@settings(max_examples=40)
@given(
    rows=st.integers(5, 70),
    size=st.integers(1, 20).map(lambda n: 16 * n),
    out=st.integers(1, 70),
    scale=st.sampled_from([1.0, 1e-19, 1e-38]),
    seed=st.integers(0, 99),
)
def test_in_bfloat16_many_rows_have_the_bits_of_each_alone(rows, size, out, scale, seed):
    """Tiles, where the processor has them, against vectors, also of numbers that are too small to be normal; and
    whatever tiles others have used in the meantime."""
    generator = torch.Generator().manual_seed(seed)
    x, w = (scale * torch.randn(shape, generator=generator) for shape in ((rows, size), (out, size)))
    engine, matrix = NativeEngine(model_of("plain", "parallel", dtype=torch.bfloat16), 1, 8), pack(w, torch.bfloat16)
    alone = np.concatenate([engine._product(matrix, row[None].numpy(), out) for row in x])
    for _ in range(2):
        np.testing.assert_array_equal(engine._product(matrix, x.numpy(), out).view(np.int32), alone.view(np.int32))
        x.bfloat16() @ w.bfloat16().T  # by torch's own tiles, of another shape


@settings(max_examples=20)
@given(
    dtype=st.sampled_from(DTYPES),
    shape=st.sampled_from(sorted(SHAPES)),
    topology=st.sampled_from(TOPOLOGIES),
    sizes=st.lists(st.integers(4, 40), min_size=1, max_size=6),
    mate=st.integers(0, 12),
    threads=st.integers(1, 3),
    window=st.sampled_from([10**10, 9, 30]),
)
def test_no_bit_depends_on_what_else_is_computed(dtype, shape, topology, sizes, mate, threads, window):
    """In pieces of any sizes, beside another row, on any number of threads, in caches that grow and go round: equal,
    not close."""
    model, ids = model_of(shape, topology, dtype=dtype), ids_of(5, 1, 150)
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


@settings(max_examples=20)
@given(
    shape=st.sampled_from(sorted(SHAPES)),
    topology=st.sampled_from(TOPOLOGIES),
    passes=st.lists(st.lists(st.integers(0, 20), min_size=3, max_size=3).filter(any), min_size=1, max_size=4),
    window=st.sampled_from([40, 7]),
    dtype=st.sampled_from(DTYPES),
)
def test_a_pass_in_one_call_is_that_in_pieces(shape, topology, passes, window, dtype):
    """Rows of any lengths, some without ids: all logits, and all that the other heads read, to the last bit."""
    model, start = model_of(shape, topology, dtype=dtype), np.zeros(3, dtype=np.int64)
    one, other = (NativeEngine(model, 3, window) for _ in range(2))
    for seed, lengths in enumerate(map(np.array, passes)):
        ids = ids_of(seed, 3, int(lengths.max()))
        other._make_room(start, int(lengths.max()))
        expected = other._verify_tree(start, ids, lengths, None)
        np.testing.assert_array_equal(one.verify(start, ids, lengths), expected)
        assert one.hidden_by_head.keys() == other.hidden_by_head.keys()
        for i, hidden in one.hidden_by_head.items():
            np.testing.assert_array_equal(hidden, other.hidden_by_head[i])
        start = start + lengths


def read(model, window, prompt):
    """An engine that has read it, in short pieces."""
    engine = NativeEngine(model, 1, window)
    for begin in range(0, prompt.shape[1], 10):
        piece = prompt[:, begin : begin + 10]
        engine.verify(np.array([begin]), piece, np.array([piece.shape[1]]))
    return engine


@pytest.mark.parametrize(("dtype", "window"), [(torch.float32, 64), (torch.float32, 3), (torch.bfloat16, 64)])
@pytest.mark.parametrize("topology", TOPOLOGIES)
@pytest.mark.parametrize("shape", ["plain", "normed heads"])
def test_an_id_in_a_tree_gets_the_bits_of_its_own_path(shape, topology, dtype, window):
    """Three branches behind a pending id, where the ring begins anew; every path alone as a chain, and the kept path
    goes on like one."""
    model, prompt = model_of(shape, topology, dtype=dtype), ids_of(1, 1, 125)
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
    commands = [[*command, *flags] for flags in BUILDS.values()]
    names = {native_library._fingerprint(command, native_library._macros(command)) for command in commands}
    assert len(names) == len(BUILDS)


def test_angles_are_those_of_the_model_whatever_stretch_they_are_in():
    size = native_engine.STRETCH
    table = torch.cat(rope_at(torch.arange(3 * size), 24, 1e4, torch.float32), 1).numpy()
    for first, last in [(0, 0), (1, 1), (0, 1), (1, 2)]:
        found, address = native_engine.angles(first, last, 24, 1e4)
        assert found.ctypes.data - address == first * size * 2 * 24 * 4
        np.testing.assert_allclose(found, table[first * size : (last + 1) * size], atol=1e-6)


def test_changed_weights_are_packed_again():
    model = model_of("plain", "parallel")
    first = packed(model)
    assert packed(model) is first
    with torch.no_grad():
        model.norm.weight.mul_(2)
    assert packed(model) is not first


def test_each_arithmetic_has_its_own_packed_weights():
    """One model, used in all by turns: none is packed anew, bfloat16 has half the bytes, and int8 hardly more than a
    quarter."""
    model, found = model_of("plain", "parallel"), {}
    for dtype in (*DTYPES, *DTYPES):
        model.use(dtype=dtype)
        assert found.setdefault(dtype, packed(model)) is packed(model)
    wide, narrow, least = (sum(w.nbytes for block in found[d].blocks.values() for w in block) for d in DTYPES)
    assert wide == 2 * narrow
    assert wide / 4 < least < wide / 4 * 1.3


@pytest.mark.parametrize("topology", TOPOLOGIES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.int8])
def test_in_narrow_arithmetic_all_modes_write_the_same(topology, dtype):
    """Without a judge of near ties: a pass over eight ids has the bits of eight passes."""
    model = model_of("grouped, odd widths", topology, dtype=dtype)
    draft = model_of("plain", "parallel", seed=1, dtype=dtype)
    outs = [generate(model, b"same", 40, mode=mode) for mode in ("ar", "speculative", "tree")]
    outs += [generate(model, b"same", 40, draft, mode="draft")]
    assert {out.stats["engine"] for out in outs} == {"native"}
    assert len({out.data for out in outs}) == 1


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
    double, half = model_of("plain", "parallel").double(), model_of("plain", "parallel").bfloat16()
    narrow = ByteMTP(ModelConfig(dim=24, layers=4, attention_heads=2, ffn_dim=48, n_future=2)).eval()
    for model in (double, half, narrow):
        assert not supports(model)
        assert generate(model, b"a", 4).stats["engine"] == "torch"
        with pytest.raises(UserError, match="the native engine runs float32 models"):
            generate(model, b"a", 4, engine="native")


def test_recorded_passes_are_not_in_int8():
    model = model_of("plain", "parallel", dtype=torch.int8)
    with pytest.raises(UserError, match="int8 is decoded by the engines native"):
        generate(model, b"a", 4, engine="recorded")
    with pytest.raises(UserError, match="int8 is for decoding and"):
        model(torch.zeros(1, 4, dtype=torch.int64))


def test_without_a_compiler_it_says_so_and_decodes_all_the_same(monkeypatch, capsys):
    model = model_of("plain", "parallel")
    expected = generate(model, b"a", 8).data
    monkeypatch.setattr(native_library, "compiler", lambda: None)
    monkeypatch.setattr(select, "library", native_library.library.__wrapped__)
    select.native_works.cache_clear()
    assert generate(model, b"a", 8).data == expected == generate(model, b"a", 8).data
    assert capsys.readouterr().err.count("no C++ compiler") == 1
    select.native_works.cache_clear()


def test_a_library_that_cannot_be_loaded_is_made_anew(monkeypatch, tmp_path):
    """Cut off by a power failure, it ended each command with a traceback."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    path = tmp_path / "bytemtp" / native_library.library().name
    path.parent.mkdir()
    path.write_bytes(b"")
    with pytest.raises(UserError, match=r"step-.*\.so cannot be loaded \(.*\); try again, or decode with --eng"):
        native_library.library.__wrapped__()
    assert not path.exists()


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
    source = native_library.SOURCE.read_text().replace("const float* angles; ", "const float *angles, *more; ", 1)
    changed = tmp_path / "step.cpp"
    changed.write_text(source)
    monkeypatch.setattr(native_library, "SOURCE", changed)
    monkeypatch.setattr(native_library, "FLAGS", ("-std=c++20", "-shared", "-fPIC", "-pthread"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(UserError, match=r"C\+\+ sources do not fit library\.py: size of Tokens is 72, not 64"):
        native_library.library.__wrapped__()


def test_many_steps_from_many_engines_at_once():
    """Threads of several engines, made and given up again."""
    model = model_of("plain", "replicated")
    expected = generate(model, b"x", 50).data
    assert all(generate(model, b"x", 50, mode="speculative").data == expected for _ in range(30))

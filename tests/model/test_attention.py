"""Every backend and layout against one dense softmax, and the promise that nothing of size s x s is ever made."""

import re
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from unittest import mock

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch._dynamo.testing import CompileCounterWithBackend
from torch.nn.attention.varlen import _varlen_attn, _varlen_attn_backward
from torch.utils._python_dispatch import TorchDispatchMode

from bytemtp.common.errors import UserError
from bytemtp.common.settings import ModelConfig
from bytemtp.model import attention
from bytemtp.model.attention import CPU, Layout, attend, attend_short, first_that_runs, pick_attention, refusal
from bytemtp.model.layers import Block, rope_at

CONFIG = ModelConfig(dim=32, layers=1, attention_heads=4, kv_heads=2, ffn_dim=16, n_future=1)


def visible(layout: Layout) -> torch.Tensor:
    """[bs, bs] bool: row sees column.  The slow, obvious meaning of a layout."""
    run = torch.repeat_interleave(torch.arange(len(layout.segments)), torch.tensor(layout.segments))
    position = torch.arange(len(run))
    distance = position[:, None] - position
    seen = (run[:, None] == run) & (distance >= 0)
    return seen & (distance < layout.window) if layout.window else seen


def reference(q, k, v, layout):
    b, s, h, _ = q.shape
    q, k, v = (x.flatten(0, 1).transpose(0, 1) for x in (q, k, v))
    k, v = (x.repeat_interleave(h // k.shape[0], dim=0) for x in (k, v))
    scores = (q @ k.transpose(1, 2)) * q.shape[-1] ** -0.5
    weights = scores.masked_fill(~visible(layout), -torch.inf).softmax(-1)
    return (weights @ v).transpose(0, 1).unflatten(0, (b, s))


def dense_varlen(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, is_causal=False, scale=None, window_size=None,
                 enable_gqa=False, seqused_k=None, block_table=None, num_splits=None):  # fmt: skip
    """What PyTorch documents of its flash kernel, and what the kernel checks of its arguments."""
    bounds = cu_seq_q.tolist()
    lengths = [end - start for start, end in pairwise(bounds)]
    assert cu_seq_q.dtype == torch.int32 and torch.equal(cu_seq_q, cu_seq_k)
    assert bounds[0] == 0 and bounds[-1] == len(query) and min(lengths) >= 0
    assert max(lengths) <= max_q == max_k
    assert all(x.dim() == 3 and x.stride(-1) == 1 for x in (query, key, value))
    assert enable_gqa or key.shape == query.shape
    assert window_size[1] == 0 and is_causal == (window_size[0] == -1)
    out = torch.einsum("hij,jhk->ihk", dense_weights(query, key, cu_seq_q, window_size), grouped(value, query))
    return out.contiguous(), torch.zeros(query.shape[1], len(query)), torch.zeros(2, dtype=torch.uint64)


def dense_varlen_backward(grad_out, query, key, value, out, lse, cu_seq_q, cu_seq_k, max_q, max_k, is_causal, rng_state,
                          scale=None, window_size=None):  # fmt: skip
    """By hand, because operators run below autograd."""
    weights = dense_weights(query, key, cu_seq_q, window_size)
    upstream = torch.einsum("ihk,jhk->hij", grad_out, grouped(value, query))
    scores = weights * (upstream - (weights * upstream).sum(-1, keepdim=True)) * query.shape[-1] ** -0.5
    gradients = [
        torch.einsum("hij,jhk->ihk", scores, grouped(key, query)),
        torch.einsum("hij,ihk->jhk", scores, query).unflatten(1, (key.shape[1], -1)).sum(2),
        torch.einsum("hij,ihk->jhk", weights, grad_out).unflatten(1, (key.shape[1], -1)).sum(2),
    ]
    return tuple(gradient.contiguous() for gradient in gradients)


def dense_weights(query, key, bounds, window_size):
    run = torch.arange(len(bounds) - 1).repeat_interleave(bounds.diff().long())
    distance = torch.arange(len(query))[:, None] - torch.arange(len(query))
    left = len(query) if window_size[0] == -1 else window_size[0]
    seen = (run[:, None] == run) & (distance >= 0) & (distance <= left)
    scores = torch.einsum("ihk,jhk->hij", query, grouped(key, query)) * query.shape[-1] ** -0.5
    return scores.masked_fill(~seen, -torch.inf).softmax(-1)


def grouped(x, query):
    return x.repeat_interleave(query.shape[1] // x.shape[1], dim=1)


@pytest.fixture(scope="module")
def varlen_on_cpu() -> None:
    """PyTorch's operator with its own autograd and its own shapes, and a slow kernel in place of the CUDA one."""
    _varlen_attn.register_kernel("cpu")(dense_varlen)
    _varlen_attn_backward.register_kernel("cpu")(dense_varlen_backward)


class StandIn:
    """xformers' operator as its kernels are: with a backward for BMHK only, and slow."""

    def __init__(self) -> None:
        self.inputs: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor, object]] = []

    def __call__(self, q, k, v, attn_bias):
        self.inputs.append((q, k, v, attn_bias))
        if q.ndim == 5 and q.requires_grad:
            raise NotImplementedError("No operator found\noperator does not support BMGHK format")
        assert q.ndim == 4 and q.shape == k.shape == v.shape and q.shape[0] == 1
        q, k, v = (x[0].transpose(0, 1) for x in (q, k, v))
        mask = attn_bias.materialize((q.shape[1], q.shape[1]), dtype=q.dtype)
        return ((q @ k.transpose(1, 2)) * q.shape[-1] ** -0.5 + mask).softmax(-1).matmul(v).transpose(0, 1)[None]


@pytest.fixture(scope="module")
def xformers_on_cpu() -> Iterator[StandIn]:
    ops = pytest.importorskip("xformers.ops")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ops, "memory_efficient_attention", stand_in := StandIn())
        yield stand_in


@pytest.fixture(autouse=True)
def _nothing_is_known_of_backends() -> Iterator[None]:
    refusal.cache_clear()
    yield
    refusal.cache_clear()


@st.composite
def packed_rows(draw):
    """document ids [b, s] as packing makes them: they start at 0 and never fall."""
    b, s = draw(st.integers(1, 3)), draw(st.integers(1, 40))
    steps = draw(st.lists(st.sampled_from([0, 0, 0, 1, 2]), min_size=b * s, max_size=b * s))
    return torch.tensor(steps).view(b, s).cumsum(1)


@given(
    ids=packed_rows(),
    groups=st.integers(1, 2),
    repeats=st.integers(1, 2),
    window=st.integers(0, 12),
    backend=st.sampled_from(["sdpa", "matmul", "varlen"]),
)
@pytest.mark.usefixtures("varlen_on_cpu")
def test_attention_equals_dense_softmax(ids, groups, repeats, window, backend):
    check_against_reference(ids, groups, repeats, window, backend)


@given(ids=packed_rows(), repeats=st.integers(1, 2), window=st.integers(0, 12), queries=st.integers(1, 41))
def test_however_many_queries_at_a_time_short_rows_equal_dense_softmax(ids, repeats, window, queries):
    with mock.patch.object(attention, "QUERIES", queries):
        check_against_reference(ids, 2, repeats, window, "matmul")


def test_without_gradients_no_scores_are_made():
    layout = Layout((8, 8), rows=2)
    assert layout.is_whole("matmul") and not layout.is_whole("sdpa")
    with torch.no_grad():
        assert not layout.is_whole("matmul")


def test_the_longest_short_row_equals_dense_softmax():
    ids = (torch.arange(attention.SHORT_ROW) * 3 // attention.SHORT_ROW).expand(2, -1)
    assert Layout.of(*ids.shape, ids).is_whole("matmul") and attention.SHORT_ROW >= 2 * attention.QUERIES
    check_against_reference(ids, 1, 2, 0, "matmul")
    check_against_reference(ids[:, :-1], 1, 2, 0, "matmul")


@pytest.mark.compiled
def test_a_layer_on_short_rows_is_one_graph():
    """A break, of which nobody is told, such as by `list[Tensor]()`, makes the layer a fifth slower."""
    block = Block(CONFIG)
    layout = Layout.of(1, 8)
    rope = rope_at(torch.arange(8), block.head_dim, 1e4, torch.float32)
    inputs = torch.randn(1, 8, CONFIG.dim), *rope, layout.mask
    whole = torch.compile(Block.on_short_rows, backend="eager", fullgraph=True)  # type: ignore[call-overload]
    torch.testing.assert_close(whole(block, *inputs), block.on_short_rows(*inputs))


@given(ids=packed_rows(), repeats=st.integers(1, 2), window=st.integers(0, 12), scale=st.sampled_from([1, 4]))
def test_short_rows_in_bfloat16_differ_by_its_rounding_alone(ids, repeats, window, scale):
    """A step of bfloat16 is 1/256 of a number, and so of a score that is 4 wide; weights are its powers of e."""
    torch.manual_seed(ids.numel())
    layout = Layout.of(*ids.shape, ids, window)
    shapes = [(*ids.shape, heads, 64) for heads in (2 * repeats, 2, 2)]
    qkv = [torch.randn(shape).bfloat16() for shape in shapes]
    qkv[0] *= scale
    found, exact = (attend_short(*(x.to(dtype) for x in qkv), layout.mask) for dtype in (torch.bfloat16, torch.float64))
    assert (found.double() - exact).norm() <= 0.01 * scale * exact.norm()


@given(ids=packed_rows(), groups=st.integers(1, 2), repeats=st.integers(1, 3), window=st.integers(0, 12))
@pytest.mark.usefixtures("xformers_on_cpu")
def test_xformers_gets_what_has_a_backward(ids, groups, repeats, window):
    """Five-dimensional inputs (BMGHK) have a forward pass only: on CUDA every run failed in its first step."""
    check_against_reference(ids, groups, repeats, window, "xformers")


def check_against_reference(ids, groups, repeats, window, backend):
    torch.manual_seed(ids.numel())
    b, s = ids.shape
    layout = Layout.of(b, s, ids, window)
    q = torch.randn(b, s, groups * repeats, 8, dtype=torch.float64, requires_grad=True)
    k, v = (torch.randn(b, s, groups, 8, dtype=torch.float64, requires_grad=True) for _ in range(2))
    attended = attend_short(q, k, v, layout.mask) if backend == "matmul" else attend(q, k, v, layout, backend)
    out, expected = attended, reference(q, k, v, layout)
    torch.testing.assert_close(out, expected)
    upstream = torch.randn_like(out)
    grads = torch.autograd.grad(out, (q, k, v), upstream)
    torch.testing.assert_close(grads, torch.autograd.grad(expected, (q, k, v), upstream))


@given(ids=packed_rows())
def test_layout_runs_are_the_documents_of_each_row(ids):
    segments = Layout.of(*ids.shape, ids).segments
    same = visible(Layout(segments)) | visible(Layout(segments)).T
    flat, row = ids.flatten(), torch.arange(ids.numel()) // ids.shape[1]
    assert sum(segments) == ids.numel()
    assert torch.equal(same, (flat[:, None] == flat) & (row[:, None] == row))


@given(ids=packed_rows(), window=st.integers(0, 12), data=st.data())
def test_the_layout_of_the_first_rows_is_a_part_of_the_whole(ids, window, data):
    rows = data.draw(st.integers(1, len(ids)))
    assert Layout.of(*ids.shape, ids, window).first(rows) == Layout.of(rows, ids.shape[1], ids[:rows], window)


@given(ids=packed_rows(), window=st.integers(0, 12))
def test_pairs_are_the_visible_ones(ids, window):
    layout = Layout.of(*ids.shape, ids, window)
    assert layout.pairs == visible(layout).sum()


@given(segments=st.lists(st.integers(1, 600), min_size=1, max_size=50))
def test_bounds_are_the_runs_and_then_empty_ones(segments):
    bounds = Layout(tuple(segments)).bounds
    lengths = bounds.diff().tolist()
    assert lengths[: len(segments)] == segments and not any(lengths[len(segments) :])
    assert len(lengths).bit_count() == 1
    assert len(lengths) <= 2 * max(len(segments), sum(segments) // attention.POSITIONS_A_RUN)


def test_batches_with_other_documents_have_bounds_of_one_shape():
    few, many = torch.zeros(8, 8192, dtype=torch.int64), torch.arange(8 * 8192).view(8, 8192) // 700
    assert Layout.of(8, 8192, few).bounds.shape == Layout.of(8, 8192, many).bounds.shape


@given(ids=packed_rows(), window=st.integers(0, 12))
def test_xformers_masks_mean_the_same(ids, window):
    """The kernel needs CUDA, but its masks can be spelled out here and compared position by position."""
    pytest.importorskip("xformers.ops.fmha.attn_bias")
    layout = Layout.of(*ids.shape, ids, window)
    mask = layout.xformers_mask.materialize((ids.numel(), ids.numel()))
    assert torch.equal(mask == 0, visible(layout))


class LargestTensor(TorchDispatchMode):
    """Records the size of the largest tensor that any operation returns."""

    largest = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for x in out if isinstance(out, (tuple, list)) else [out]:
            if isinstance(x, torch.Tensor):
                self.largest = max(self.largest, x.numel())
        return out


@pytest.mark.parametrize(("documents", "window"), [(1, 0), (3, 0), (1, 64), (3, 64), (1, 1000)])
@pytest.mark.parametrize("kv_heads", [1, 2])
@pytest.mark.parametrize("backend", ["sdpa", "matmul"])
def test_memory_is_linear_in_length(documents, window, kv_heads, backend):
    """SDPA drops to its s x s path without a word when an option does not suit the fast one; this would show it."""

    def largest(s):
        ids = (torch.arange(s) * documents // s)[None]
        q = torch.randn(1, s, 2, 16, requires_grad=True)
        k, v = (torch.randn(1, s, kv_heads, 16, requires_grad=True) for _ in range(2))
        with LargestTensor() as seen:
            attend(q, k, v, Layout.of(1, s, ids, window), backend).sum().backward()
        return seen.largest

    assert largest(4096) <= 4.5 * largest(1024)


def test_a_backend_that_cannot_run_is_refused():
    assert pick_attention("auto", CPU, CONFIG, torch.float32).value == "matmul"
    for backend in ("xformers", "varlen"):
        with pytest.raises(UserError, match=f"'{backend}' needs a CUDA device"):
            pick_attention(backend, CPU, CONFIG, torch.float32)
    with pytest.raises(UserError, match="unknown attention backend 'flash'; use auto, xformers"):
        pick_attention("flash", CPU, CONFIG, torch.float32)


@pytest.mark.usefixtures("varlen_on_cpu")
def test_the_first_backend_that_runs_is_taken(xformers_on_cpu):
    choice = first_that_runs(CPU, CONFIG, torch.float32)
    assert choice.value == "xformers" and "runs on this device" in choice.reason
    assert any(inputs[0].requires_grad for inputs in xformers_on_cpu.inputs)


def no_operator(*_, **__):
    raise NotImplementedError(
        "No operator found for `memory_efficient_attention_forward` with inputs:\n     query: shape=(1, 32, 4, 8)\n"
        "`cutlassF` is not supported because:\n    xFormers wasn't build with CUDA support"
    )


def forward_only(q, k, v, attn_bias):
    class Forward(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, gradient):
            raise NotImplementedError("only FW pass")

    return Forward.apply(q)


def without_numbers(q, k, v, attn_bias):
    return (q + k + v) * torch.nan


@pytest.mark.usefixtures("varlen_on_cpu")
@pytest.mark.parametrize(("broken", "reason"), [
    (no_operator, "No operator found for .* with inputs: ... xFormers wasn't build with CUDA support"),
    (forward_only, "only FW pass"),
    (without_numbers, "its gradients are not finite"),
])  # fmt: skip
def test_an_xformers_that_imports_but_does_not_run_is_passed_over(monkeypatch, broken, reason):
    """Built for another CUDA or torch, it imports with a warning, and then every operator refuses."""
    monkeypatch.setattr(pytest.importorskip("xformers.ops"), "memory_efficient_attention", broken)
    choice = first_that_runs(CPU, CONFIG, torch.float32)
    assert choice.value == "varlen"
    pattern = f"^varlen \\(xformers does not run: {reason}; runs on this device, forward and backward\\)$"
    assert re.match(pattern, str(choice))


@pytest.mark.usefixtures("varlen_on_cpu")
def test_where_nothing_else_runs_it_is_sdpa(monkeypatch):
    monkeypatch.setattr(pytest.importorskip("xformers.ops"), "memory_efficient_attention", no_operator)
    with _varlen_attn.set_kernel_enabled("cpu", enabled=False):
        choice = first_that_runs(CPU, CONFIG, torch.bfloat16)
    assert choice.value == "sdpa"
    assert re.match(r"xformers does not run: .+; varlen does not run: .+", choice.reason)


@pytest.mark.skipif(torch.cuda.is_available(), reason="for machines without CUDA")
def test_cuda_backends_are_tried_before_they_are_taken():
    cuda = torch.device("cuda")
    assert pick_attention("auto", cuda, CONFIG, torch.bfloat16).value == "sdpa"
    for backend in ("xformers", "varlen"):
        with pytest.raises(UserError, match=f"'{backend}' does not run here: .*; use 'sdpa' or 'auto'"):
            pick_attention(backend, cuda, CONFIG, torch.bfloat16)


ABOUT_THIS_MACHINE = ("device=", "operator wasn't built", "bf16 is only supported", "operator is non-deterministic")


@pytest.mark.parametrize("window", [0, 8])
@pytest.mark.parametrize("kv_heads", [1, 2, 4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_xformers_itself_has_a_backward_for_our_shapes(window, kv_heads, dtype, xformers_on_cpu):
    """Its operators say why they do not take inputs: here, that there is no CUDA, and nothing else."""
    fmha = pytest.importorskip("xformers.ops.fmha")
    kinds = [fmha.cutlass] if dtype == torch.float32 else [fmha.cutlass, fmha.flash]
    xformers_on_cpu.inputs.clear()
    k, v = (torch.randn(2, 32, kv_heads, 32, dtype=dtype, requires_grad=True) for _ in range(2))
    q = torch.randn(2, 32, 4, 32, dtype=dtype, requires_grad=True)
    attend(q, k, v, Layout((5, 27, 32), window, 2), "xformers").sum().backward()
    ((q4, k4, v4, mask),) = xformers_on_cpu.inputs
    inputs = fmha.Inputs(query=q4, key=k4, value=v4, attn_bias=mask)
    grouped = replace(inputs, query=q4[:, :, None], key=k4[:, :, None], value=v4[:, :, None])
    for operator in [operator for kind in kinds for operator in (kind.FwOp, kind.BwOp)]:
        assert not reasons(operator, inputs), operator.NAME
    for kind in kinds:
        assert reasons(kind.BwOp, grouped) == ["operator does not support BMGHK format"]


def reasons(operator, inputs) -> list[str]:
    return [text for text in operator.not_supported_reasons(inputs) if not text.startswith(ABOUT_THIS_MACHINE)]


@pytest.mark.parametrize("kv_heads", [2, 4])
def test_xformers_gets_no_copies_where_every_head_has_its_keys(kv_heads, xformers_on_cpu):
    xformers_on_cpu.inputs.clear()
    q, k, v = torch.randn(2, 16, 4 + 2 * kv_heads, 8).split([4, kv_heads, kv_heads], dim=2)
    attend(q, k, v, Layout((5, 11, 16), rows=2), "xformers")
    given = xformers_on_cpu.inputs[0][:3]
    same = [x.data_ptr() == y.data_ptr() for x, y in zip((q, k, v), given, strict=True)]
    assert same == [True, kv_heads == 4, kv_heads == 4]


@pytest.mark.compiled
@pytest.mark.usefixtures("varlen_on_cpu")
@pytest.mark.parametrize("window", [0, 8])
def test_a_layer_with_varlen_is_one_graph_for_all_batches(window):
    """Forward and backward; other documents, and another number of them, do not make it compile again."""
    compiles = CompileCounterWithBackend("aot_eager")
    block, plain = Block(CONFIG), Block(CONFIG)
    plain.load_state_dict(block.state_dict())
    rope = rope_at(torch.arange(16), CONFIG.head_dim, 1e4, torch.float32)
    whole = torch.compile(Block.on_packed_rows, backend=compiles, fullgraph=True, dynamic=False)
    for segments in ((16, 16), (5, 11, 16), (3, 13, 8, 8)):
        layout = Layout(segments, window, 2)
        bounds = torch.cat([layout.bounds, layout.bounds[-1:].expand(5 - len(layout.bounds))])
        x = torch.randn(2, 16, 32)
        out = whole(block, x, *rope, bounds, window)
        out.sum().backward()
        expected = plain(x, rope, layout)
        expected.sum().backward()
        torch.testing.assert_close(out, expected)
        torch.testing.assert_close(block.qkv.weight.grad, plain.qkv.weight.grad)
    assert compiles.frame_count == 1


@pytest.mark.filterwarnings("ignore:warmup, rep, and use_cuda_graph:DeprecationWarning")  # Triton's, in xformers
@pytest.mark.gpu
@pytest.mark.parametrize("window", [0, 16])
@pytest.mark.parametrize("kv_heads", [1, 2, 4])
@pytest.mark.parametrize(("backend", "dtype"), [
    ("xformers", torch.float32), ("xformers", torch.bfloat16), ("varlen", torch.bfloat16), ("sdpa", torch.bfloat16),
])  # fmt: skip
def test_cuda_kernels_equal_dense_softmax(window, kv_heads, backend, dtype):
    torch.manual_seed(0)
    config = ModelConfig(dim=128, layers=1, attention_heads=4, kv_heads=kv_heads, ffn_dim=16, n_future=1, window=window)
    if reason := refusal(backend, torch.device("cuda"), config, dtype):
        pytest.skip(reason)
    ids = torch.randint(0, 2, (2, 96)).cumsum(1) // 20
    layout = Layout.of(2, 96, ids, window, torch.device("cuda", torch.cuda.current_device()))
    q = torch.randn(2, 96, 4, 32, requires_grad=True, device="cuda", dtype=dtype)
    k, v = (torch.randn(2, 96, kv_heads, 32, requires_grad=True, device="cuda", dtype=dtype) for _ in range(2))
    upstream = torch.randn_like(q)
    out = attend(q, k, v, layout, backend)
    grads = torch.autograd.grad(out, (q, k, v), upstream)
    slow = [x.detach().cpu().double().requires_grad_() for x in (q, k, v)]
    expected = reference(*slow, layout)
    slow_grads = torch.autograd.grad(expected, slow, upstream.cpu().double())
    near = 5e-3 if dtype == torch.float32 else 5e-2
    for fast, exact in zip((out, *grads), (expected, *slow_grads), strict=True):
        torch.testing.assert_close(fast.cpu().double(), exact, atol=near, rtol=near)


@pytest.mark.gpu
def test_a_cuda_device_has_a_backend_that_runs():
    choice = pick_attention("auto", torch.device("cuda", 0), replace(CONFIG, dim=256), torch.bfloat16)
    assert not refusal(choice.value, torch.device("cuda", 0), replace(CONFIG, dim=256), torch.bfloat16)

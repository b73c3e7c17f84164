"""Every backend and layout against one dense softmax, and the promise that nothing of size s x s is ever made."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from bytemtp.common.errors import UserError
from bytemtp.model.attention import Layout, attend, pick_attention


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
    backend=st.sampled_from(["sdpa", "matmul"]),
)
def test_attention_equals_dense_softmax(ids, groups, repeats, window, backend):
    torch.manual_seed(ids.numel())
    b, s = ids.shape
    layout = Layout.of(b, s, ids, window)
    q = torch.randn(b, s, groups * repeats, 8, dtype=torch.float64, requires_grad=True)
    k, v = (torch.randn(b, s, groups, 8, dtype=torch.float64, requires_grad=True) for _ in range(2))
    out, expected = attend(q, k, v, layout, backend), reference(q, k, v, layout)
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


@pytest.mark.parametrize("documents", [1, 3])
@pytest.mark.parametrize("window", [0, 64])
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
    assert pick_attention("auto", torch.device("cpu")).value == "matmul"
    with pytest.raises(UserError, match="needs a CUDA device"):
        pick_attention("xformers", torch.device("cpu"))


@pytest.mark.gpu
@pytest.mark.parametrize("window", [0, 16])
def test_xformers_kernel_equals_dense_softmax(window):
    torch.manual_seed(0)
    ids = torch.randint(0, 2, (2, 96)).cumsum(1) // 20
    layout = Layout.of(2, 96, ids, window)
    q = torch.randn(2, 96, 4, 32, requires_grad=True, device="cuda")
    k, v = (torch.randn(2, 96, 2, 32, requires_grad=True, device="cuda") for _ in range(2))
    upstream = torch.randn_like(q)
    out = attend(q, k, v, layout, "xformers")
    grads = torch.autograd.grad(out, (q, k, v), upstream)
    slow = [x.detach().cpu().double().requires_grad_() for x in (q, k, v)]
    expected = reference(*slow, layout)
    slow_grads = torch.autograd.grad(expected, slow, upstream.cpu().double())
    for fast, exact in zip((out, *grads), (expected, *slow_grads), strict=True):
        torch.testing.assert_close(fast.cpu().double(), exact, atol=5e-3, rtol=5e-3)

"""Causal attention over rows of packed documents: one function, `attend`, behind which the backend is chosen visibly.

A position sees the positions of its own document up to itself, and with a window only the last `window` of those.
`Layout` says which positions those are; it is made once a batch and shared by all layers.  Memory is linear in the
sequence length on both backends, packed or not, because no backend ever makes a mask of s x s:

- `xformers` (CUDA): memory_efficient_attention with a block-diagonal causal mask.
- `sdpa` (anywhere): documents of similar length are padded into one batch for PyTorch's flash kernel.  Right padding
  needs no mask: a causal query never looks to its right.
- `matmul` (CPU): rows of at most 256 positions as two matrix products and a softmax over the whole row, where PyTorch's
  CPU flash kernel is up to twice as slow; longer rows as `sdpa`.  The square is bounded by the longest row, so memory
  stays linear in the number of positions.

Shapes:  b batch, s position, h query heads, g key/value heads (h is a multiple of g), k head width.
"""

from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from jaxtyping import Bool, Float, Int
from torch import Tensor

from bytemtp.common.errors import UserError
from bytemtp.common.runtime import Choice

SHORT_ROW = 256
"""Longest row whose square of scores `matmul` makes."""


def pick_attention(requested: str, device: torch.device) -> Choice:
    """xformers on CUDA, matmul on a CPU, unless asked otherwise.  UserError if the request cannot be met."""
    if requested in ("sdpa", "matmul"):
        return Choice(requested, "as asked")
    if device.type != "cuda":
        if requested == "xformers":
            raise UserError("attention backend 'xformers' needs a CUDA device; use 'sdpa' or 'auto'")
        return Choice("matmul", f"fastest on a CPU up to {SHORT_ROW} positions; sdpa beyond")
    try:
        import xformers.ops  # noqa: F401  (imported only where it can run)
    except ImportError as error:
        if requested == "xformers":
            raise UserError(f"attention backend 'xformers' cannot be imported: {error}") from error
        return Choice("sdpa", f"xformers cannot be imported: {error}")
    return Choice("xformers", "as asked" if requested == "xformers" else "CUDA device")


@dataclass(frozen=True)
class Layout:
    """Runs of positions that may see each other, in the flattened order (b s)."""

    segments: tuple[int, ...]
    """lengths of the runs; a run never crosses a row"""
    window: int = 0
    """how many positions back a query sees, itself included; 0 means the whole run"""
    rows: int = 1
    """b"""

    @staticmethod
    def of(batch: int, length: int, document_ids: Int[Tensor, "b s"] | None = None, window: int = 0) -> "Layout":
        """Without `document_ids` every row is one run."""
        if document_ids is None:
            return Layout((length,) * batch, window, batch)
        opens = torch.ones(batch, length, dtype=torch.bool)
        ids = document_ids.cpu()
        opens[:, 1:] = ids[:, 1:] != ids[:, :-1]
        starts = opens.flatten().nonzero().flatten()
        ends = torch.cat([starts[1:], torch.tensor([batch * length])])
        return Layout(tuple((ends - starts).tolist()), window, batch)

    def first(self, rows: int) -> "Layout":
        """Of the first rows alone."""
        end = sum(self.segments) // self.rows * rows
        ends = list(accumulate(self.segments))
        return Layout(self.segments[: ends.index(end) + 1], self.window, rows)

    def is_whole(self, backend: str) -> bool:
        """Whether `backend` makes the squares of scores of whole rows."""
        return backend == "matmul" and self._is_short

    @cached_property
    def _is_short(self) -> bool:
        return sum(self.segments) <= self.rows * SHORT_ROW

    @cached_property
    def is_plain(self) -> bool:
        """All runs have one length: no packing is needed."""
        return len(set(self.segments)) == 1

    @cached_property
    def hidden(self) -> Bool[Tensor, "b 1 1 s s"]:
        """Whether a query (second last axis) does not see a key (last axis): made once for all layers."""
        run = torch.arange(len(self.segments)).repeat_interleave(torch.tensor(self.segments)).view(self.rows, -1)
        position = torch.arange(run.shape[1])
        distance = position[:, None] - position
        outside = (distance < 0) | (distance >= self.window) if self.window else distance < 0
        return ((run[:, :, None] != run[:, None]) | outside)[:, None, None]

    @cached_property
    def xformers_mask(self) -> Any:
        """Block-diagonal causal mask, made once for all layers."""
        from xformers.ops.fmha.attn_bias import BlockDiagonalCausalMask

        mask = BlockDiagonalCausalMask.from_seqlens(list(self.segments))
        return mask.make_local_attention(self.window) if self.window else mask

    @cached_property
    def buckets(self) -> "Buckets":
        return Buckets.of(self.segments)


@dataclass(frozen=True)
class Buckets:
    """Runs sorted into batches of similar length (within a factor of two, so padding at most doubles the work)."""

    shapes: tuple[tuple[int, int], ...]
    """(runs, padded length) of each bucket"""
    gather: Int[Tensor, " padded"]
    """position in (b s) that each padded slot reads; padding reads its run's first position"""
    scatter: Int[Tensor, " bs"]
    """padded slot that holds each position's result"""

    @staticmethod
    def of(segments: tuple[int, ...]) -> "Buckets":
        lengths = torch.tensor(segments)
        starts = lengths.cumsum(0) - lengths
        bucket = (lengths - 1).clamp_min(0).double().add(1).log2().floor()
        shapes, gather = [], []
        scatter = torch.empty(int(lengths.sum()), dtype=torch.long)
        filled = 0
        for value in bucket.unique():
            lengths_here, starts_here = lengths[bucket == value], starts[bucket == value]
            runs, longest = len(lengths_here), int(lengths_here.max())
            offset = torch.arange(longest)
            real = offset < lengths_here[:, None]
            source = starts_here[:, None] + offset * real
            scatter[source[real]] = (filled + torch.arange(runs * longest).view(runs, longest))[real]
            shapes.append((runs, longest))
            gather.append(source.flatten())
            filled += runs * longest
        return Buckets(tuple(shapes), torch.cat(gather), scatter)


def attend(
    q: Float[Tensor, "b s h k"],
    k: Float[Tensor, "b s g k"],
    v: Float[Tensor, "b s g k"],
    layout: Layout,
    backend: str,
) -> Float[Tensor, "b s h k"]:
    """softmax(q k^T / sqrt(width)) v over the positions that `layout` lets each query see."""
    if backend == "xformers":
        return _attend_xformers(q, k, v, layout)
    if layout.is_whole(backend):
        return attend_short(q, k, v, layout.hidden.to(q.device))
    if layout.is_plain:
        length = layout.segments[0]
        runs = [rearrange(x, "b (m l) h k -> (b m) l h k", l=length) for x in (q, k, v)]
        return _attend_runs(runs, layout.window).reshape(q.shape)
    return _attend_buckets(q, k, v, layout)


def attend_short(
    q: Float[Tensor, "b s h k"],
    k: Float[Tensor, "b s g k"],
    v: Float[Tensor, "b s g k"],
    hidden: Bool[Tensor, "b 1 1 s s"],
) -> Float[Tensor, "b s h k"]:
    """The formula as it stands, scores of whole rows at once; the softmax is in float32 at least."""
    queries = rearrange(q * q.shape[-1] ** -0.5, "b s (g r) k -> b g r s k", g=k.shape[2])
    keys, values = (rearrange(x, "b s g k -> b g 1 s k") for x in (k, v))
    scores = queries @ keys.transpose(-2, -1)
    wide = scores if scores.dtype == torch.float64 else scores.float()
    weights = wide.masked_fill(hidden, -torch.inf).softmax(-1).to(v.dtype)
    return rearrange(weights @ values, "b g r s k -> b s (g r) k")


def _attend_xformers(q: Tensor, k: Tensor, v: Tensor, layout: Layout) -> Tensor:
    from xformers.ops import memory_efficient_attention

    groups = k.shape[2]
    q5 = rearrange(q, "b s (g r) k -> 1 (b s) g r k", g=groups)
    k5, v5 = (repeat(x, "b s g k -> 1 (b s) g r k", r=q5.shape[3]) for x in (k, v))
    return memory_efficient_attention(q5, k5, v5, attn_bias=layout.xformers_mask).reshape(q.shape)


def _attend_buckets(q: Tensor, k: Tensor, v: Tensor, layout: Layout) -> Tensor:
    buckets = layout.buckets
    gather, scatter = buckets.gather.to(q.device), buckets.scatter.to(q.device)
    sizes = [runs * length for runs, length in buckets.shapes]
    padded = [x.flatten(0, 1).index_select(0, gather).split(sizes) for x in (q, k, v)]
    outputs = [
        _attend_runs([x.unflatten(0, shape) for x in parts], layout.window).flatten(0, 1)
        for shape, *parts in zip(buckets.shapes, *padded, strict=True)
    ]
    return torch.cat(outputs).index_select(0, scatter).view_as(q)


def _attend_runs(qkv: list[Tensor], window: int) -> Tensor:
    """Attention inside m runs of one length: q [m l h k], k and v [m l g k]."""
    q, k, v = qkv
    if window and window < q.shape[1]:
        return _attend_windowed(q, k, v, window)
    return _sdpa(q, k, v, is_causal=True)


def _attend_windowed(q: Tensor, k: Tensor, v: Tensor, window: int) -> Tensor:
    """Cut runs into chunks of `window` queries; each chunk sees at most itself and the chunk before it."""
    runs, length = q.shape[:2]
    chunks = -(-length // window)
    q, k, v = (F.pad(x, (0, 0, 0, 0, 0, chunks * window - length)) for x in (q, k, v))
    queries = rearrange(q, "m (c w) h k -> (m c) w h k", w=window)
    keys, values = (_with_previous_chunk(x, window) for x in (k, v))
    out = _sdpa(queries, keys, values, attn_mask=_window_mask(runs, chunks, window).to(q.device))
    return rearrange(out, "(m c) w h k -> m (c w) h k", m=runs)[:, :length]


def _with_previous_chunk(x: Tensor, window: int) -> Tensor:
    chunks = rearrange(x, "m (c w) g k -> m c w g k", w=window)
    previous = F.pad(chunks, (0, 0, 0, 0, 0, 0, 1, 0))[:, :-1]
    return rearrange(torch.cat([previous, chunks], dim=2), "m c w2 g k -> (m c) w2 g k")


def _window_mask(runs: int, chunks: int, window: int) -> Bool[Tensor, "mc 1 w w2"]:
    query = torch.arange(window)[:, None] + window
    key = torch.arange(2 * window)
    seen = (key <= query) & (key > query - window)
    mask = repeat(seen, "w w2 -> c w w2", c=chunks).clone()
    mask[0, :, :window] = False  # nothing comes before the first chunk
    return repeat(mask, "c w w2 -> (m c) 1 w w2", m=runs)


def _sdpa(q: Tensor, k: Tensor, v: Tensor, **mask: Any) -> Tensor:
    q, k, v = (rearrange(x, "m l h k -> m h l k") for x in (q, k, v))
    out = F.scaled_dot_product_attention(q, k, v, enable_gqa=q.shape[1] != k.shape[1], **mask)
    return rearrange(out, "m h l k -> m l h k")

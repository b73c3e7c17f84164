"""Causal attention over rows of packed documents: one function, `attend`, behind which the backend is chosen visibly.

A position sees the positions of its own document up to itself, and with a window only the last `window` of those.
`Layout` says which positions those are; it is made once a batch and shared by all layers.  Memory is linear in the
sequence length on all backends, packed or not, because none makes a mask of s x s for rows of more than 512 positions:

- `xformers` (CUDA): memory_efficient_attention with a block-diagonal causal mask.  No kernel of it has a backward for
  grouped queries, so keys and values are repeated for them.
- `varlen` (CUDA, 16 bits): PyTorch's flash kernel for runs that lie one behind the other.  Their number is padded, so
  that shapes stay the same from batch to batch and a whole layer can be compiled.
- `sdpa` (anywhere): documents of similar length are padded into one batch for PyTorch's flash kernel.  Right padding
  needs no mask: a causal query never looks to its right.
- `matmul` (CPU): in training, compiled or in 16 bits, rows of at most 512 positions as matrix products and a softmax,
  256 queries at a time over all keys up to them, since the backward pass of PyTorch's CPU flash kernel is up to three
  times as slow; all else as `sdpa`.  The scores are bounded by the longest such row, so memory stays linear.

Shapes:  b batch, s position, h query heads, g key/value heads (h is a multiple of g), k head width.
"""

from dataclasses import dataclass, replace
from functools import cache, cached_property
from itertools import accumulate
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import BFloat16, Bool, Float, Int, Int32
from torch import Tensor

from bytemtp.common.errors import UserError
from bytemtp.common.runtime import Choice, moved
from bytemtp.common.settings import ModelConfig
from bytemtp.model.context_parallel import WHOLE, Part

BACKENDS = ("auto", "xformers", "varlen", "sdpa", "matmul")
CUDA_BACKENDS = ("xformers", "varlen")
"""In this order `auto` tries them on CUDA; sdpa runs where they do not."""
CPU = torch.device("cpu")

SHORT_ROW = 512
"""Longest row whose scores `matmul` makes."""
QUERIES = 256
"""Of which it makes the scores together.  Fewer would spare more of the keys that none of them sees, but torch.compile
takes some four seconds more for each further part."""
POSITIONS_A_RUN = 512
"""`varlen` makes room for a run in so many positions, and for twice as many until they fit."""


def pick_attention(requested: str, device: torch.device, config: ModelConfig, dtype: torch.dtype) -> Choice:
    """What runs fastest on the device in layers of `config` with queries of `dtype`, unless asked otherwise.

    UserError if the request cannot be met.
    """
    if requested not in BACKENDS:
        raise UserError(f"unknown attention backend {requested!r}; use {', '.join(BACKENDS)}")
    if requested == "auto":
        if device.type == "cuda":
            return first_that_runs(device, config, dtype)
        return Choice("matmul", f"fastest training on a CPU up to {SHORT_ROW} positions; sdpa beyond and elsewhere")
    if requested in CUDA_BACKENDS:
        if device.type != "cuda":
            raise UserError(f"attention backend {requested!r} needs a CUDA device; use 'sdpa' or 'auto'")
        if reason := refusal(requested, device, config, dtype):
            raise UserError(f"attention backend {requested!r} does not run here: {reason}; use 'sdpa' or 'auto'")
    return Choice(requested, "as asked")


def first_that_runs(device: torch.device, config: ModelConfig, dtype: torch.dtype) -> Choice:
    """The first of `CUDA_BACKENDS` that runs, or sdpa; the reason says why those before it do not."""
    reasons: list[str] = []
    for backend in CUDA_BACKENDS:
        reason = refusal(backend, device, config, dtype)
        if not reason:
            return Choice(backend, "; ".join([*reasons, "runs on this device, forward and backward"]))
        reasons.append(f"{backend} does not run: {reason}")
    return Choice("sdpa", "; ".join(reasons))


@cache
def refusal(backend: str, device: torch.device, config: ModelConfig, dtype: torch.dtype) -> str:
    """Why the backend cannot train layers of `config` on the device; empty if it can.

    It is tried, forward and backward, on two short rows of three documents: that a library can be imported does not
    say that its kernels were built for this machine, nor that they take these shapes.
    """
    layout = Layout((5, 11, 16), config.window, 2, device)
    heads = [config.attention_heads, config.key_value_heads, config.key_value_heads]
    try:
        with torch.inference_mode(False), torch.enable_grad():
            q, k, v = (torch.ones(2, 16, h, config.head_dim, dtype=dtype, device=device) for h in heads)
            qkv = [x.requires_grad_() for x in (q, k, v)]
            gradients = torch.autograd.grad(attend(q, k, v, layout, backend).sum(), qkv)
            is_finite = all(bool(gradient.isfinite().all()) for gradient in gradients)
    except Exception as error:  # noqa: BLE001 - whatever a library raises that does not fit this machine
        lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
        return lines[0] if len(lines) == 1 else f"{lines[0]} ... {lines[-1]}"
    return "" if is_finite else "its gradients are not finite"


@dataclass(frozen=True)
class Layout:
    """Runs of positions that may see each other, in the flattened order (b s)."""

    segments: tuple[int, ...]
    """lengths of the runs; a run never crosses a row"""
    window: int = 0
    """how many positions back a query sees, itself included; 0 means the whole run"""
    rows: int = 1
    """b"""
    device: torch.device = CPU
    """where the positions are computed; what the backends need is put there once, without waiting for the device"""
    part: Part = WHOLE
    """of each row, whose queries are here"""

    @staticmethod
    def of(
        batch: int,
        length: int,
        document_ids: Int[Tensor, "b s"] | None = None,
        window: int = 0,
        device: torch.device = CPU,
        part: Part = WHOLE,
    ) -> "Layout":
        """Without `document_ids` every row is one run.  Those that are not on the host must be waited for."""
        if document_ids is None:
            return Layout((length,) * batch, window, batch, device, part)
        opens = torch.ones(batch, length, dtype=torch.bool)
        ids = document_ids.cpu()
        opens[:, 1:] = ids[:, 1:] != ids[:, :-1]
        starts = opens.flatten().nonzero().flatten()
        ends = torch.cat([starts[1:], torch.tensor([batch * length])])
        return Layout(tuple((ends - starts).tolist()), window, batch, device, part)

    def first(self, rows: int) -> "Layout":
        """Of the first rows alone."""
        end = self.positions // self.rows * rows
        ends = list(accumulate(self.segments))
        return replace(self, segments=self.segments[: ends.index(end) + 1], rows=rows)

    @cached_property
    def positions(self) -> int:
        return sum(self.segments)

    @cached_property
    def pairs(self) -> int:
        """How many (query, key) pairs see each other."""
        widths = ((length, min(length, self.window or length)) for length in self.segments)
        return sum(width * (width + 1) // 2 + (length - width) * width for length, width in widths)

    def is_whole(self, backend: str) -> bool:
        """Whether `backend` makes the scores of whole rows here."""
        return backend == "matmul" and self.positions <= self.rows * SHORT_ROW and torch.is_grad_enabled()

    @cached_property
    def is_plain(self) -> bool:
        """All runs have one length: no packing is needed."""
        return len(set(self.segments)) == 1

    @cached_property
    def mask(self) -> BFloat16[Tensor, "b 1 1 s s"]:
        """0 where a query (second last axis) sees a key (last axis), -inf elsewhere: made once for all layers.

        To be added: torch.compile makes several times faster code of that than of a choice by bool.
        """
        run = torch.arange(len(self.segments)).repeat_interleave(torch.tensor(self.segments)).view(self.rows, -1)
        position = torch.arange(run.shape[1])
        distance = position[:, None] - position
        outside = (distance < 0) | (distance >= self.window) if self.window else distance < 0
        return moved(added((run[:, :, None] != run[:, None]) | outside)[:, None, None], self.device)

    @cached_property
    def bounds(self) -> Int32[Tensor, " runs"]:
        """Where each run starts, then where the last one ends: again and again, as of runs without positions.

        So that shapes seldom change, the number of runs is a power of two.  It is no larger than that, because the
        backward pass of `varlen` takes memory for each run.
        """
        size = max(len(self.segments), self.positions // POSITIONS_A_RUN)
        bounds = torch.full([1 + (1 << (size - 1).bit_length())], self.positions, dtype=torch.int32)
        bounds[: len(self.segments) + 1] = torch.tensor([0, *accumulate(self.segments)])
        return moved(bounds, self.device)

    @cached_property
    def xformers_mask(self) -> Any:
        """Block-diagonal causal mask, made once for all layers."""
        from xformers.ops.fmha.attn_bias import BlockDiagonalCausalMask

        mask = BlockDiagonalCausalMask.from_seqlens(list(self.segments), device=self.device)
        return mask.make_local_attention(self.window) if self.window else mask

    @cached_property
    def buckets(self) -> "Buckets":
        buckets = Buckets.of(self.segments)
        return Buckets(buckets.shapes, moved(buckets.gather, self.device), moved(buckets.scatter, self.device))


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
        bucket = lengths.double().log2().floor()
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
    """softmax(q k^T / sqrt(width)) v over the positions that `layout` lets each query see.

    Where a process has a part of each row, q, k and v are of its positions, and so is the result.
    """
    q, k, v = map(layout.part.to_heads, (q, k, v))
    return layout.part.to_positions(_attend(q, k, v, layout, backend))


def _attend(q: Tensor, k: Tensor, v: Tensor, layout: Layout, backend: str) -> Tensor:
    """Of whole rows."""
    if backend == "xformers":
        return _attend_xformers(q, k, v, layout)
    if backend == "varlen":
        return attend_packed(q, k, v, layout.bounds, layout.window)
    if layout.is_whole(backend) and q.itemsize < torch.float32.itemsize:  # in float32 only if it is compiled
        return attend_short(q, k, v, layout.mask)
    if layout.is_plain:
        length = layout.segments[0]
        runs = [rearrange(x, "b (m l) h k -> (b m) l h k", l=length) for x in (q, k, v)]
        return _attend_runs(runs, layout.window).reshape(q.shape)
    return _attend_buckets(q, k, v, layout)


def attend_short(
    q: Float[Tensor, "b s h k"],
    k: Float[Tensor, "b s g k"],
    v: Float[Tensor, "b s g k"],
    mask: BFloat16[Tensor, "b 1 1 s s"],
) -> Float[Tensor, "b s h k"]:
    """`QUERIES` at a time; keys behind them are left out."""
    queries, keys, values = heads_first(q, k, v)
    parts = [(slice(start, start + QUERIES), slice(start + QUERIES)) for start in range(0, q.shape[1], QUERIES)]
    return positions_first(
        [
            attend_dense(queries[..., own, :], keys[..., seen, :], values[..., seen, :], mask[..., own, seen])
            for own, seen in parts
        ]
    )


def heads_first(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Scaled queries [b g r s k], the r of a group beside each other; keys and values [b g 1 s k]."""
    queries = rearrange(q * q.shape[-1] ** -0.5, "b s (g r) k -> b g r s k", g=k.shape[2])
    return queries, rearrange(k, "b s g k -> b g 1 s k"), rearrange(v, "b s g k -> b g 1 s k")


def positions_first(parts: list[Tensor]) -> Tensor:
    """[b g r c k] each, one behind another -> [b s h k]."""
    return rearrange(torch.cat(parts, dim=-2), "b g r s k -> b s (g r) k")


def attend_dense(queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor) -> Tensor:
    """The formula as it stands, but that the weights' sum divides the output in place of each weight: so one pass over
    the scores makes the weights, and the backward pass needs nothing else.  The sum is in float32 at least.

    Shapes as `heads_first` gives them.
    """
    scores = queries @ keys.transpose(-2, -1) + mask
    weights = (scores - scores.amax(-1, keepdim=True).detach()).exp()
    total = weights.sum(-1, keepdim=True, dtype=torch.promote_types(weights.dtype, torch.float32))
    return (weights @ values / total).to(values.dtype)


def added(hidden: Bool[Tensor, "*s"]) -> BFloat16[Tensor, "*s"]:
    """What is added to scores, so that hidden keys have no weight; both values are exact in any dtype."""
    return torch.zeros(hidden.shape, dtype=torch.bfloat16, device=hidden.device).masked_fill_(hidden, -torch.inf)


def attend_packed(
    q: Float[Tensor, "b s h k"],
    k: Float[Tensor, "b s g k"],
    v: Float[Tensor, "b s g k"],
    bounds: Int32[Tensor, " runs"],
    window: int,
) -> Float[Tensor, "b s h k"]:
    """All runs in one kernel.  It is told that they may be as long as a row, which is so for every batch."""
    from torch.nn.attention.varlen import varlen_attn

    longest, is_grouped = q.shape[1], q.shape[2] != k.shape[2]
    reach = (window - 1, 0)  # keys before and after a query's own place; -1 means all
    queries, keys, values = (x.flatten(0, 1) for x in (q, k, v))
    out = varlen_attn(queries, keys, values, bounds, bounds, longest, longest, window_size=reach, enable_gqa=is_grouped)
    assert isinstance(out, Tensor)  # nothing else was asked for
    return out.reshape(q.shape)


def _attend_xformers(q: Tensor, k: Tensor, v: Tensor, layout: Layout) -> Tensor:
    from xformers.ops import memory_efficient_attention

    packed = [x.flatten(0, 1)[None] for x in (q, *_like_queries(q, k, v))]
    return memory_efficient_attention(*packed, attn_bias=layout.xformers_mask).reshape(q.shape)


def _attend_buckets(q: Tensor, k: Tensor, v: Tensor, layout: Layout) -> Tensor:
    buckets = layout.buckets
    sizes = [runs * length for runs, length in buckets.shapes]
    padded = [x.flatten(0, 1).index_select(0, buckets.gather).split(sizes) for x in (q, k, v)]
    outputs = [
        _attend_runs([x.unflatten(0, shape) for x in parts], layout.window).flatten(0, 1)
        for shape, *parts in zip(buckets.shapes, *padded, strict=True)
    ]
    return torch.cat(outputs).index_select(0, buckets.scatter).view_as(q)


def _attend_runs(qkv: list[Tensor], window: int) -> Tensor:
    """Attention inside m runs of one length: q [m l h k], k and v [m l g k]."""
    q, k, v = qkv
    if window and window < q.shape[1]:
        return _attend_windowed(q, k, v, window)
    return _sdpa(q, k, v, is_causal=True)


def _attend_windowed(q: Tensor, k: Tensor, v: Tensor, window: int) -> Tensor:
    """`QUERIES` at a time, with as many blocks of keys before their own as the first of them sees.

    Split and joined, since the gradient of a slice is as long as the row.  One mask serves all blocks.
    """
    before = -(-(window - 1) // QUERIES)
    place = torch.arange((before + 1) * QUERIES, device=q.device)
    back = place[-QUERIES:, None] - place
    mask = torch.zeros(back.shape, dtype=q.dtype, device=q.device)
    mask.masked_fill_((back < 0) | (back >= window), -torch.inf)
    queries, keys, values = (x.split(QUERIES, dim=1) for x in (q, *_like_queries(q, k, v)))
    parts = []
    for i, own in enumerate(queries):
        first, length = max(0, i - before), own.shape[1]
        key, value = (torch.cat(x[first : i + 1], dim=1) for x in (keys, values))
        columns = slice((before - i + first) * QUERIES, before * QUERIES + length)
        parts.append(_sdpa(own, key, value, attn_mask=mask[:length, columns]))
    return torch.cat(parts, dim=1)


def _like_queries(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """Keys and values of each head by itself: PyTorch's fast kernels know no shared heads under a mask."""
    repeats = q.shape[2] // k.shape[2]
    return (k, v) if repeats == 1 else (k.repeat_interleave(repeats, dim=2), v.repeat_interleave(repeats, dim=2))


def _sdpa(q: Tensor, k: Tensor, v: Tensor, **mask: Any) -> Tensor:
    q, k, v = (rearrange(x, "m l h k -> m h l k") for x in (q, k, v))
    out = F.scaled_dot_product_attention(q, k, v, enable_gqa=q.shape[1] != k.shape[1], **mask)
    return rearrange(out, "m h l k -> m l h k")

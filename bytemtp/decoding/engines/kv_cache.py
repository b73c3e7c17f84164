"""The key/value cache: any chunk can be appended, and what was appended can be taken back for nothing.

A chunk of ids has a position (for the rotary embedding) and a slot (where its keys and values are written) each, and a
mask of the slots that it sees.  Nothing is ever erased: whoever owns the cache knows how many ids of each row are
decided, and a slot that holds another id is rewritten before any later chunk sees it.  So to take drafts back is to
forget them.

Shapes:  b rows, c ids of the chunk, t visible slots, s slots, h query heads, g key/value heads (h = g r), k head width.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from jaxtyping import Bool, Float, Int
from torch import Tensor

from bytemtp.model.layers import Block, Rope


@dataclass(frozen=True)
class Chunk:
    """Where the ids of one pass stand."""

    rope: Rope
    """cosines and sines of their positions, [b c 1 k]"""
    slots: Int[Tensor, "b c"]
    mask: Bool[Tensor, "b c t"]
    """slots that each id sees, its own included"""

    def at(self, index: Int[Tensor, " b"]) -> "Chunk":
        """The chunk of one id a row, the one at `index`."""
        row = torch.arange(len(index), device=index.device)
        cos, sin = (x[row, index][:, None] for x in self.rope)
        return Chunk((cos, sin), self.slots[row, index][:, None], self.mask[row, index][:, None])


class LayerCache:
    """Keys and values of one transformer layer: a ring, and one slot behind it for what has no place."""

    def __init__(self, block: Block, rows: int) -> None:
        weight = block.qkv.weight
        shape = rows, block.kv_heads, 1, block.head_dim
        self.k, self.v = (torch.zeros(shape, dtype=weight.dtype, device=weight.device) for _ in range(2))

    def grow(self, slots: int, source: Int[Tensor, "b s"], to: Int[Tensor, "b s"]) -> None:
        """To so many slots; what lay in the slots `source` goes to the slots `to`."""
        self.k, self.v = (_grown(x, slots, source, to) for x in (self.k, self.v))

    def write(self, chunk: Chunk, k: Float[Tensor, "b c g k"], v: Float[Tensor, "b c g k"]) -> None:
        row = torch.arange(len(k), device=k.device)[:, None]
        self.k[row, :, chunk.slots] = k.to(self.k.dtype)
        self.v[row, :, chunk.slots] = v.to(self.v.dtype)

    def move(self, source: Int[Tensor, "b a"], to: Int[Tensor, "b a"]) -> None:
        """Copy slots within each row."""
        row = torch.arange(len(source), device=source.device)[:, None]
        self.k[row, :, to], self.v[row, :, to] = self.k[row, :, source], self.v[row, :, source]

    def attend(self, chunk: Chunk, q: Float[Tensor, "b c h k"]) -> Float[Tensor, "b c h k"]:
        """Attention of the chunk's queries over the slots that they see.

        Query heads that share keys stand one behind another, as more ids would: PyTorch's fast kernels know no shared
        heads under a mask.
        """
        slots, groups = chunk.mask.shape[2], self.k.shape[1]
        k, v = (x[:, :, :slots].to(q.dtype) for x in (self.k, self.v))
        queries = rearrange(q, "b c (g r) k -> b g (r c) k", g=groups)
        mask = repeat(chunk.mask, "b c t -> b 1 (r c) t", r=q.shape[2] // groups)
        out = F.scaled_dot_product_attention(queries, k, v, attn_mask=mask)
        return rearrange(out, "b g (r c) k -> b c (g r) k", c=q.shape[1])


def _grown(
    x: Float[Tensor, "b g s1 k"], slots: int, source: Int[Tensor, "b s"], to: Int[Tensor, "b s"]
) -> Float[Tensor, "b g s2 k"]:
    row = torch.arange(len(x), device=x.device)[:, None]
    grown = x.new_zeros(*x.shape[:2], slots + 1, x.shape[3])
    grown[row, :, to] = x[row, :, source]
    return grown


def step(block: Block, x: Float[Tensor, "b c d"], chunk: Chunk, cache: LayerCache) -> Float[Tensor, "b c d"]:
    """`block` on a chunk: `Block.forward` with the cache in place of the rows before it."""
    q, k, v = block.project(x, *chunk.rope)
    cache.write(chunk, k, v)
    return block.finish(x, cache.attend(chunk, q))


def step_at(
    block: Block, x: Float[Tensor, "b c d"], chunk: Chunk, cache: LayerCache, index: Int[Tensor, " b"]
) -> Float[Tensor, "b 1 d"]:
    """Like `step`, but only keys and values are made for all of the chunk; the output is that of one id a row."""
    q, k, v = block.project(x, *chunk.rope)
    cache.write(chunk, k, v)
    row = torch.arange(len(x), device=x.device)
    return block.finish(x[row, index][:, None], cache.attend(chunk.at(index), q[row, index][:, None]))

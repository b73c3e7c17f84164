"""The key/value cache: preallocated, any chunk can be appended, and what was appended can be taken back for nothing.

A chunk of ids has a position (for the rotary embedding) and a slot (where its keys and values are written) each, and a
mask of the slots that it sees.  Nothing is ever erased: whoever owns the cache knows how many slots of each row hold
decided ids, and a slot beyond that is rewritten before any later chunk sees it.  So to take drafts back is to forget
them.

Shapes:  b rows, c ids of the chunk, t slots, h query heads, g key/value heads, k head width.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
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
    """Keys and values of one transformer layer."""

    def __init__(self, block: Block, rows: int, slots: int) -> None:
        weight = block.qkv.weight
        shape = rows, block.kv_heads, slots, block.head_dim
        self.k, self.v = (torch.zeros(shape, dtype=weight.dtype, device=weight.device) for _ in range(2))

    def write(self, chunk: Chunk, k: Float[Tensor, "b c g k"], v: Float[Tensor, "b c g k"]) -> None:
        row = torch.arange(len(k), device=k.device)[:, None]
        self.k[row, :, chunk.slots] = k.to(self.k.dtype)
        self.v[row, :, chunk.slots] = v.to(self.v.dtype)

    def move(self, source: Int[Tensor, "b a"], to: Int[Tensor, "b a"]) -> None:
        """Copy slots within each row."""
        row = torch.arange(len(source), device=source.device)[:, None]
        self.k[row, :, to], self.v[row, :, to] = self.k[row, :, source], self.v[row, :, source]

    def attend(self, chunk: Chunk, q: Float[Tensor, "b c h k"]) -> Float[Tensor, "b c h k"]:
        """Attention of the chunk's queries over the slots that they see."""
        slots = chunk.mask.shape[2]
        k, v = self.k[:, :, :slots].to(q.dtype), self.v[:, :, :slots].to(q.dtype)
        out = F.scaled_dot_product_attention(
            q.transpose(1, 2), k, v, attn_mask=chunk.mask[:, None], enable_gqa=q.shape[2] != k.shape[1]
        )
        return out.transpose(1, 2)


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

"""A model's matrices in the order in which step.cpp reads them.

A matrix [out, in] becomes panels of p outputs, [out / p, in / w, p, w], where w inputs fill 32 bits: one in float32,
two in bfloat16 (those of layers in int8: `pack_int8`).  The scale of a norm in front of it goes into it.  How wide
vectors and panels are depends on the processor that the library was compiled for.

Shapes:  d width, h query heads, g key/value heads, k head width, f inner width, p outputs of a panel.
"""

from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Float32, UInt8, UInt16
from torch import Tensor, nn

from bytemtp.decoding.engines.native.library import library
from bytemtp.decoding.engines.native.memory import CacheShape, EngineMemory, contiguous_copies
from bytemtp.decoding.engines.ring import round_up
from bytemtp.model.heads import DeepSeekModule
from bytemtp.model.int8 import rounded
from bytemtp.model.layers import Block, RMSNorm
from bytemtp.model.model import ByteMTP, cached_by_weights

Packed = (
    Float32[np.ndarray, "panels in p 1"] | UInt16[np.ndarray, "panels pairs p 2"] | UInt8[np.ndarray, "panels bytes"]
)
"""bfloat16, which NumPy does not know, by its bits"""


def pack(weight: Float[Tensor, "out in"], dtype: torch.dtype, scale: Float[Tensor, " in"] | None = None) -> Packed:
    """A matrix with the norm's scale in it, in panels, zeros behind the last output."""
    weight = weight if scale is None else weight * scale
    if dtype == torch.int8:
        return pack_int8(weight)
    weight = weight.to(dtype)
    panel, together = library().panel, 4 // dtype.itemsize
    weight = F.pad(weight, (0, 0, 0, round_up(len(weight), panel) - len(weight)))
    panels = weight.unflatten(1, (-1, together)).unflatten(0, (-1, panel)).transpose(1, 2).contiguous()
    return panels.view(torch.uint16 if dtype == torch.bfloat16 else dtype).numpy()


def pack_int8(weight: Float[Tensor, "out in"]) -> UInt8[np.ndarray, "panels bytes"]:
    """A panel is the scales of its outputs, float32, 128 times the sums of their weights, int32, and [in / 4, p, 4]."""
    whole, scale = rounded(weight)
    panel = library().panel
    more = round_up(len(weight), panel) - len(weight)
    whole, scale = F.pad(whole, (0, 0, 0, more)), F.pad(scale, (0, more))
    sums = 128 * whole.sum(1, dtype=torch.int32)
    parts = [scale.unflatten(0, (-1, panel)), sums.unflatten(0, (-1, panel))]
    quads = whole.to(torch.int8).unflatten(1, (-1, 4)).unflatten(0, (-1, panel)).transpose(1, 2)
    bytes_ = [part.contiguous().view(torch.uint8) for part in (*parts, quads.flatten(1))]
    return torch.cat(bytes_, dim=1).numpy()


def pack_block(block: Block, dtype: torch.dtype) -> list[Packed]:
    """The four matrices of a layer: qkv, attention_out, gate_up, ffn_out."""
    lanes = library().lanes
    extra = round_up(block.head_dim, lanes) - block.head_dim
    qkv = block.qkv.weight.unflatten(0, (-1, block.head_dim))
    out = block.attention_out.weight.unflatten(1, (-1, block.head_dim))
    gate, up = block.gate_up.weight.chunk(2)
    more = round_up(len(gate), lanes) - len(gate)
    both = torch.stack([F.pad(w, (0, 0, 0, more)).unflatten(0, (-1, lanes)) for w in (gate, up)], dim=1)
    matrices = [
        pack(F.pad(qkv, (0, 0, 0, extra)).flatten(0, 1), dtype, block.attention_norm.weight),
        pack(F.pad(out, (0, extra)).flatten(1), dtype),
        pack(both.flatten(0, 2), dtype, block.ffn_norm.weight),
        pack(F.pad(block.ffn_out.weight, (0, more)), dtype),
    ]
    return contiguous_copies(matrices)


def head_norms(block: Block) -> list[Float32[np.ndarray, " k"]]:
    """Scales of the norms of queries and keys; empty if there are none."""
    return [norm.weight.contiguous().numpy() for norm in (block.q_norm, block.k_norm) if isinstance(norm, RMSNorm)]


class PackedModel:
    """All matrices of a float32 model on the CPU, in float32 or bfloat16, or those of layers in int8 and the others in
    float32; the embedding, which is only looked up, as it is."""

    @torch.no_grad()
    def __init__(self, model: ByteMTP, dtype: torch.dtype) -> None:
        self.embed: Float32[np.ndarray, "v d"] = model.embed.weight.contiguous().numpy()
        self.blocks = {module: pack_block(module, dtype) for module in model.modules() if isinstance(module, Block)}
        self.head_norms = {block: head_norms(block) for block in self.blocks}
        dtype = torch.float32 if dtype == torch.int8 else dtype
        norm = model.norm.weight
        unembed = [module.weight for module in model.unembed if isinstance(module, nn.Linear)]
        self.unembed = pack(unembed[0], dtype, norm)
        self.other_unembeds = pack(torch.cat(unembed[1:]), dtype, norm) if len(unembed) > 1 else self.unembed
        linear = [link.weight for link in model.links if isinstance(link, nn.Linear)]
        self.linear = pack(torch.cat(linear), dtype) if linear else None
        self.merges = [self._merge(link, dtype) for link in model.links if isinstance(link, DeepSeekModule)]
        """of each MTP module the half that reads the hidden state and the half that reads the embedding"""

        self._spare: EngineMemory | None = None

    def memory(self, shape: CacheShape) -> EngineMemory:
        """Memory of an engine: that of the last one, if it fits and is free, with the slots that it has.

        New memory costs a page fault for every few keys; what an old one holds is never read before it is rewritten.
        """
        spare, self._spare = self._spare, None
        return spare if spare is not None and spare.shape == shape else EngineMemory(shape)

    def give_back(self, memory: EngineMemory) -> None:
        self._spare = memory

    @staticmethod
    def _merge(module: DeepSeekModule, dtype: torch.dtype) -> tuple[Packed, Packed]:
        hidden, embedded = module.merge.weight.chunk(2, dim=1)
        return pack(hidden, dtype, module.hidden_norm.weight), pack(embedded, dtype, module.embed_norm.weight)


PACKED = {
    dtype: cached_by_weights(partial(PackedModel, dtype=dtype)) for dtype in (torch.float32, torch.bfloat16, torch.int8)
}
"""By the arithmetic that a model is run in."""


def packed(model: ByteMTP) -> PackedModel:
    """The model's packed matrices, in the arithmetic that it is to be run in."""
    return PACKED[model.dtype](model)

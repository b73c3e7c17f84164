"""The transformer layer of Llama: pre-norm attention and SwiGLU, rotary positions, no biases.

Written so that trunk + head 1 is transformers' `LlamaForCausalLM` with the same weights, or with `qk_norm` its
`Qwen3ForCausalLM` (equal logits within rounding; theirs rounds norms and angles to float32 in whatever dtype, ours is
float64 everywhere in a float64 model).  Two things differ in form only: the q, k, v matrices are one matrix, and so are
gate and up, because one wide matrix product is faster than several narrow ones.

With `qk_norm` queries and keys are normed over the width of a head before they are rotated, so that no score can exceed
the root of that width times the scales (Henry et al. 2020, with the norm and learned scales of Qwen3, 2025): one scale
for all query heads of a layer and one for all key heads.

A layer is two halves around attention, `project` and `finish`.  The halves are what torch.compile compiles: each is
compiled once and serves all layers, while attention, whose layout changes with every batch, stays outside.  Layer and
attention are compiled as one where the layout is no more than a tensor and whole rows are here: plain matrix products
(`matmul`, short rows), and `varlen`.

Shapes:  b batch, s position, d width, h query heads, g key/value heads, k head width, f inner width.
Sources: RMSNorm (Zhang & Sennrich 2019), RoPE (Su et al. 2021), SwiGLU (Shazeer 2020), Llama (Touvron et al. 2023).
"""

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from bytemtp.common.settings import ModelConfig
from bytemtp.model.attention import Layout, attend, attend_packed, attend_short

NORM_EPSILON = 1e-5

Rope = tuple[Float[Tensor, "*s 1 k"], Float[Tensor, "*s 1 k"]]
"""cosines and sines of the rotary embedding, one row a position; [s 1 k], or [b s 1 k] where rows stand elsewhere.  The
first half of the sines is negated."""


class RMSNorm(nn.Module):
    """x / rms(x) in float32 at least, then scaled in the input's dtype (the order that Llama uses)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x: Float[Tensor, "*b d"]) -> Float[Tensor, "*b d"]:
        return rms_norm(x, self.weight)


def rms_norm(x: Float[Tensor, "*b d"], weight: Float[Tensor, "*w d"]) -> Float[Tensor, "*b d"]:
    exact = wide(x)
    normed = exact * torch.rsqrt(exact.pow(2).mean(-1, keepdim=True) + NORM_EPSILON)
    return weight * normed.to(x.dtype)


def wide(x: Float[Tensor, "*b"]) -> Float[Tensor, "*b"]:
    """In float32 at least, as norms, softmax and sums need it."""
    return x if x.dtype == torch.float64 else x.float()


class Block(nn.Module):
    """One transformer layer."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.heads, self.kv_heads, self.head_dim = config.attention_heads, config.key_value_heads, config.head_dim
        self.attention_norm = RMSNorm(config.dim)
        self.qkv = nn.Linear(config.dim, (self.heads + 2 * self.kv_heads) * self.head_dim, bias=False)
        self.q_norm, self.k_norm = (RMSNorm(self.head_dim) if config.qk_norm else nn.Identity() for _ in range(2))
        self.attention_out = nn.Linear(config.dim, config.dim, bias=False)
        self.ffn_norm = RMSNorm(config.dim)
        self.gate_up = nn.Linear(config.dim, 2 * config.ffn_dim, bias=False)
        self.ffn_out = nn.Linear(config.ffn_dim, config.dim, bias=False)
        self.attention_backend = "sdpa"
        self.compiled = False

    def forward(self, x: Float[Tensor, "b s d"], rope: Rope, layout: Layout) -> Float[Tensor, "b s d"]:
        has_rows = layout.part.size == 1  # else other processes must be met between the halves
        if has_rows and self.compiled and layout.is_whole(self.attention_backend):
            return compile_once(Block.on_short_rows)(self, x, *rope, layout.mask)
        if has_rows and self.attention_backend == "varlen":
            whole = compile_once(Block.on_packed_rows) if self.compiled else Block.on_packed_rows
            return whole(self, x, *rope, layout.bounds, layout.window)
        project = compile_once(Block.project) if self.compiled else Block.project
        finish = compile_once(Block.finish) if self.compiled else Block.finish
        q, k, v = project(self, x, *rope)
        return finish(self, x, attend(q, k, v, layout, self.attention_backend))

    def on_short_rows(self, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor) -> Tensor:
        q, k, v = self.project(x, cos, sin)
        return self.finish(x, attend_short(q, k, v, mask))

    def on_packed_rows(self, x: Tensor, cos: Tensor, sin: Tensor, bounds: Tensor, window: int) -> Tensor:
        q, k, v = self.project(x, cos, sin)
        return self.finish(x, attend_packed(q, k, v, bounds, window))

    def project(self, x: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """x [b s d] -> rotated q [b s h k], rotated k [b s g k], v [b s g k], all in the dtype of the product."""
        qkv = self.qkv(self.attention_norm(x)).unflatten(-1, (-1, self.head_dim))
        q, k, v = qkv.split([self.heads, self.kv_heads, self.kv_heads], dim=2)
        q, k = rotate(self.q_norm(q), cos, sin), rotate(self.k_norm(k), cos, sin)
        return q.to(v.dtype), k.to(v.dtype), v

    def finish(self, x: Tensor, attended: Tensor) -> Tensor:
        """Residual sums of the attention's output [b s h k] and of the feed-forward layer."""
        x = x + self.attention_out(attended.flatten(2))
        gate, up = self.gate_up(self.ffn_norm(x)).chunk(2, dim=-1)
        return x + self.ffn_out(F.silu(gate) * up)


SHAPES = 64
"""Most that one function is compiled for: heads come in groups of many sizes, and rows grow."""


@cache
def compile_once(function: Callable[..., Any]) -> Callable[..., Any]:
    """torch.compile for one fixed shape, shared by all layers (compiling for any shape would be slower)."""
    return torch.compile(function, dynamic=False, recompile_limit=SHAPES)  # type: ignore[call-overload]


def rope_at(positions: Int[Tensor, "*s"], head_dim: int, theta: float, dtype: torch.dtype) -> Rope:
    """Angles in float32 at least and only then cast: made in bfloat16, far ones would be wrong by whole turns."""
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    frequency = 1.0 / theta ** (torch.arange(0, head_dim, 2, device=positions.device, dtype=wide) / head_dim)
    angle = positions[..., None].to(wide) * frequency
    angle = torch.cat([-angle, angle], dim=-1)[..., None, :]
    return angle.cos().to(dtype), angle.sin().to(dtype)


def rotate(x: Float[Tensor, "b s h k"], cos: Tensor, sin: Tensor) -> Float[Tensor, "b s h k"]:
    """Rotary position embedding in Llama's "rotate half" order: width i pairs with width i + k/2.

    Halves change places by a flip, of which torch.compile makes faster code than of halves that are joined.
    """
    return x * cos + x.unflatten(-1, (2, -1)).flip(-2).flatten(-2) * sin

"""Context parallelism: k processes have a k-th of each row's positions, and while they attend a k-th of its heads.

    queries, keys, values of own positions, all heads     [b s/k h w]
    of all positions, own heads                           [b s h/k w]     an exchange; attention as in one process
    what was attended, of own positions, all heads        [b s/k h w]     an exchange back

All else in a model looks at one position at a time.  This is DeepSpeed-Ulysses (Jacobs et al. 2023, arXiv 2309.14509).
Unlike ring attention it leaves attention as it is, whatever the backend, with windows and packed documents; but there
can be no more processes than key/value heads.

Shapes:  b batch, s position, h head (of queries, or of keys and values), w head width.
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from einops import rearrange
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True)
class Part:
    """Which of `size` equal parts of each row is here, and which processes have the others, in order."""

    index: int = 0
    size: int = 1
    group: dist.ProcessGroup | None = None

    def of_row(self, row: Tensor, ahead: int) -> Tensor:
        """Its columns of [b, s + ahead], and the `ahead` columns behind them."""
        length = (row.shape[1] - ahead) // self.size
        return row[:, self.index * length : (self.index + 1) * length + ahead]

    def to_heads(self, x: Float[Tensor, "b s h w"]) -> Float[Tensor, "b ks h_k w"]:
        """Own positions of all heads -> all positions of own heads."""
        if self.size == 1:
            return x
        parts = _Exchange.apply(rearrange(x, "b s (k h) w -> k b s h w", k=self.size), self.group)
        return rearrange(parts, "k b s h w -> b (k s) h w")

    def to_positions(self, x: Float[Tensor, "b ks h_k w"]) -> Float[Tensor, "b s h w"]:
        """Back again."""
        if self.size == 1:
            return x
        parts = _Exchange.apply(rearrange(x, "b (k s) h w -> k b s h w", k=self.size), self.group)
        return rearrange(parts, "k b s h w -> b s (k h) w")


WHOLE = Part()


class _Exchange(torch.autograd.Function):
    """The i-th part [k ...] of process j becomes the j-th part of process i; so do gradients on their way back."""

    @staticmethod
    def forward(ctx: Any, parts: Tensor, group: dist.ProcessGroup) -> Tensor:
        ctx.group = group
        return _exchanged(parts, group)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return _exchanged(gradient, ctx.group), None


def _exchanged(parts: Tensor, group: dist.ProcessGroup) -> Tensor:
    found = torch.empty_like(parts, memory_format=torch.contiguous_format)
    dist.all_to_all_single(found, parts.contiguous(), group=group)
    return found

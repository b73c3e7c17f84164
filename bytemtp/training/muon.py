"""Muon (Jordan et al. 2024) for many matrices at a time: small ones of one shape are orthogonalised as a stack.

In a small model a matrix product takes less time than its call, and `torch.optim.Muon` makes fifteen calls a matrix.

Sharded matrices are gathered for it, in bfloat16 and once a step, and every process orthogonalises all of them; the
momenta stay sharded.

Try:  python -m bytemtp.train FILE --out RUN --train.optimizer muon
Shapes:  m matrices of r rows and c columns.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from jaxtyping import BFloat16
from torch import Tensor

from bytemtp.common.shards import joined_like, local, split_like

RMS = 0.2
"""Root mean square of an update, in learning rates: that of AdamW's (Liu et al. 2025, section 2.2)."""
STACKED = 2**22
"""Most weights of a stack, unless a single matrix has more: larger products keep a machine busy by themselves."""


class StackedMuon(torch.optim.Muon):
    """`torch.optim.Muon` with `match_rms_adamw`: the same state, and the same updates but for rounding."""

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for alike in stacks([param for param in group["params"] if param.grad is not None]):
                self._step(group, alike)

    def _step(self, group: dict[str, Any], params: list[Tensor]) -> None:
        """Of matrices of one shape."""
        for param in params:
            if not self.state[param]:
                self.state[param]["momentum_buffer"] = torch.zeros_like(param)
        own = [local(param) for param in params]
        gradients = [local(param.grad) for param in params if param.grad is not None]  # all have one
        momenta = [local(self.state[param]["momentum_buffer"]) for param in params]
        torch._foreach_lerp_(momenta, gradients, 1 - group["momentum"])
        nesterov = torch._foreach_lerp(gradients, momenta, group["momentum"])
        updates = [joined_like(x.bfloat16(), param) for x, param in zip(nesterov, params, strict=True)]
        directions = zip(orthogonalised(torch.stack(updates), group), params, strict=True)
        torch._foreach_mul_(own, 1 - group["lr"] * group["weight_decay"])
        scale = -group["lr"] * RMS * max(params[0].shape) ** 0.5
        steps = [local(split_like(direction, param)).to(param.dtype) for direction, param in directions]
        torch._foreach_add_(own, steps, alpha=scale)


def stacks(params: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """Parameters of one shape, STACKED weights or a single matrix at a time."""
    for shape in dict.fromkeys(param.shape for param in params):
        alike = [param for param in params if param.shape == shape]
        size = max(1, STACKED // shape.numel())
        yield from (alike[i : i + size] for i in range(0, len(alike), size))


def orthogonalised(x: BFloat16[Tensor, "m r c"], group: dict[str, Any]) -> BFloat16[Tensor, "m r c"]:
    """Matrices with the same singular vectors and values around 1: Newton and Schulz's iteration, in bfloat16."""
    a, b, c = group["ns_coefficients"]
    is_high = x.shape[1] > x.shape[2]
    x = x.mT if is_high else x
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=group["eps"])
    for _ in range(group["ns_steps"]):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if is_high else x

"""A model whose layers multiply in int8: in tensor operations what the native engine does by bytes.

A row of a matrix, and each vector that it is multiplied with, is rounded to whole multiples of a 127th of its largest
number (without a sign).  Sums are of whole numbers and exact.  Norms, attention, embedding and unembedding stay as they
are.  Source of the rounding by row and by vector: Dettmers et al. 2022 (arXiv 2208.07339), without its outliers.

    in_int8(model).logits(...)

Shapes:  b any shape, d width.
"""

import copy

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from bytemtp.model.layers import Block
from bytemtp.model.model import ByteMTP, cached_by_weights

STEPS = 127
SMALLEST_SCALE = 2.0**-120
"""127 over a yet smaller number would overflow; activations and weights are far above."""
EXACT_IN_FLOAT32 = 2**24 // STEPS**2
"""Products of so many whole numbers have a sum that is exact in float32."""

MATRICES = {"qkv": "attention_norm", "attention_out": "", "gate_up": "ffn_norm", "ffn_out": ""}
"""Of a layer, and the norm in front of each."""


def rounded(x: Float[Tensor, "*b d"]) -> tuple[Float[Tensor, "*b d"], Float[Tensor, "*b"]]:
    """Whole numbers from -127 to 127, and by what they are to be multiplied."""
    largest = x.abs().amax(-1)
    steps = (STEPS / largest).clamp(max=1 / SMALLEST_SCALE)
    return (x * steps[..., None]).round(), (largest / STEPS).clamp(min=SMALLEST_SCALE)


class Int8Linear(nn.Module):
    """y = x W^T of a matrix and vectors that are both rounded: the product of whole numbers, times both scales."""

    def __init__(self, weight: Float[Tensor, "out in"]) -> None:
        super().__init__()
        whole, self.scale = rounded(weight)
        self.weight = whole.to(weight.dtype if weight.shape[1] <= EXACT_IN_FLOAT32 else torch.float64)

    def forward(self, x: Float[Tensor, "*b in"]) -> Float[Tensor, "*b out"]:
        whole, scale = rounded(x)
        sums = F.linear(whole.to(self.weight.dtype), self.weight)
        return sums.to(x.dtype) * self.scale * scale[..., None]


@cached_by_weights
@torch.no_grad()
def in_int8(model: ByteMTP) -> ByteMTP:
    """The model with its layers' matrices in int8, the scales of norms in them; all else is shared."""
    copied = copy.deepcopy(model, {id(weight): weight for weight in model.parameters()})
    copied.dtype = torch.float32
    for block in copied.modules():
        if isinstance(block, Block):
            for name, norm in MATRICES.items():
                weight = getattr(block, name).weight
                if norm:
                    scale = getattr(block, norm).weight
                    weight = weight * scale
                    getattr(block, norm).weight = nn.Parameter(torch.ones_like(scale), requires_grad=False)
                setattr(block, name, Int8Linear(weight))
    return copied

"""The judge of near ties: the next id's logits from the text alone.

One float64 pass over the whole text, whatever was cached, drafted or batched; so two ways of decoding that both ask
here get the same answer to the last bit.
"""

import copy
from functools import cached_property

import torch
from jaxtyping import Float, Int
from torch import Tensor

from bytemtp.model import ByteMTP


class Exact:
    """A float64 copy of a model, made when it is first needed."""

    def __init__(self, model: ByteMTP, window: int) -> None:
        self.source, self.window = model, window

    @cached_property
    def model(self) -> ByteMTP:
        model = copy.deepcopy(self.source).double()
        model.use(attention="sdpa")
        return model

    @torch.inference_mode()
    def logits(self, ids: Int[Tensor, " s"]) -> Float[Tensor, " v"]:
        """Head 1's logits after the last of `ids`."""
        model = self.model
        context = model.context(ids[None], len(ids), window=self.window)
        x = model.run_trunk(context)
        for i in model.path_to_first_head:
            x = model.link(i, x, context)
        return model.logits(0, x[:, -1:])[0, 0].cpu()

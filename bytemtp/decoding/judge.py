"""The judge of near ties: the next id's logits from the text alone.

One float64 forward pass over the whole text, whatever was cached, drafted or batched; so two ways of decoding that both
ask here get the same answer to the last bit.

    Float64Judge(model, window=512).logits(np.array([EOT, *b"def "]))

Shapes:  s ids of the text, v vocabulary.
"""

import copy

import numpy as np
import torch
from jaxtyping import Float64, Int

from bytemtp.model.model import ByteMTP, cached_by_weights


class Float64Judge:
    """A float64 copy of a model, made when it is first needed and kept as long as the model."""

    def __init__(self, model: ByteMTP, window: int) -> None:
        self.source, self.window = model, window

    @torch.inference_mode()
    def logits(self, ids: Int[np.ndarray, " s"]) -> Float64[np.ndarray, " v"]:
        """Head 1's logits after the last of `ids`."""
        model = in_float64(self.source)
        x = model.first_hidden(torch.from_numpy(ids)[None].to(model.device), self.window)
        return model.logits(0, x[:, -1:])[0, 0].cpu().numpy()


@cached_by_weights
def in_float64(model: ByteMTP) -> ByteMTP:
    """The model's copy."""
    wide = copy.deepcopy(model).double()
    wide.use(attention="sdpa")
    return wide

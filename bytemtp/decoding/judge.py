"""The judge of near ties: the next id's logits from the text alone.

One float64 forward pass over the text, whatever was cached, drafted or batched; so two ways of decoding that both ask
here get the same answer to the last bit.  One layer after another is cast to float64 and given up again, so that the
pass takes little memory beside the model.

    Float64Judge(model, window=512).logits(np.array([EOT, *b"def "]))

Shapes:  s ids of the text, d width, v vocabulary.
"""

import copy

import numpy as np
import torch
from jaxtyping import Float64, Int
from torch import Tensor

from bytemtp.model.layers import Block, rope_at
from bytemtp.model.model import ByteMTP, unembed


class Float64Judge:
    """A model in float64, each id seeing `window` ids back."""

    def __init__(self, model: ByteMTP, window: int) -> None:
        self.model, self.window = model, window

    @torch.inference_mode()
    def logits(self, ids: Int[np.ndarray, " s"]) -> Float64[np.ndarray, " v"]:
        """Head 1's logits after the last of `ids`."""
        model = self.model
        blocks = [module for module in model.first_modules() if isinstance(module, Block)]
        # How many ids at the end matter before each layer, and behind the last one.
        reach = [1 + left * (self.window - 1) for left in range(len(blocks), -1, -1)]
        positions = torch.arange(len(ids), device=model.device)[-reach[0] :]
        x = model.embed.weight[torch.from_numpy(ids).to(model.device)[-reach[0] :]].double()[None]
        for block, kept in zip(blocks, reach[1:], strict=True):
            x = self._run(block, x, positions[-x.shape[1] :])[:, -kept:]
        return unembed(x[0, -1], *(weight.double() for weight in model.unembedding(0))).cpu().numpy()

    def _run(self, block: Block, x: Float64[Tensor, "1 s d"], positions: Int[Tensor, " s"]) -> Float64[Tensor, "1 s d"]:
        wide = copy.deepcopy(block).double()
        wide.attention_backend, wide.compiled = "sdpa", False
        rope = rope_at(positions, block.head_dim, self.model.config.rope_theta, torch.float64)
        return wide(x, rope, self.model.layout(1, len(positions), window=self.window))

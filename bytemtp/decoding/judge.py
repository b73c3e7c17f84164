"""The judge of near ties: the next id's logits from the text alone.

One float64 forward pass over the text, whatever was cached, drafted or batched; so two ways of decoding that both ask
here get the same answer to the last bit.  One layer after another is cast to float64 and given up again, so that the
pass takes little memory beside the model; only what the last id depends on is computed.

    Float64Judge(model, window=512).logits(np.array([EOT, *b"def "]))

Shapes:  s ids of the text, c of them that are asked for, d width, h query heads, g key/value heads, k head width, v
vocabulary.
"""

import copy

import numpy as np
import torch
from jaxtyping import Float64, Int
from torch import Tensor

from bytemtp.model.attention import QUERIES, added, attend_dense, heads_first, positions_first
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
        blocks = model.first_blocks()
        # How many ids at the end matter before each layer, and behind the last one.
        reach = [1 + left * (self.window - 1) for left in range(len(blocks), -1, -1)]
        positions = torch.arange(len(ids), device=model.device)[-reach[0] :]
        x = model.embed.weight[torch.from_numpy(ids).to(model.device)[-reach[0] :]].double()[None]
        for block, kept in zip(blocks, reach[1:], strict=True):
            x = self._run(block, x, positions[-x.shape[1] :], kept)
        return unembed(x[0, -1], *(weight.double() for weight in model.unembedding(0))).cpu().numpy()

    def _run(
        self, block: Block, x: Float64[Tensor, "1 s d"], positions: Int[Tensor, " s"], kept: int
    ) -> Float64[Tensor, "1 c d"]:
        """The layer's output for the last ids, `kept` at most."""
        wide = copy.deepcopy(block).double()
        q, k, v = wide.project(x, *rope_at(positions, block.head_dim, self.model.config.rope_theta, torch.float64))
        return wide.finish(x[:, -kept:], attend_last(q[:, -kept:], k, v, self.window))


def attend_last(
    q: Float64[Tensor, "1 c h k"], k: Float64[Tensor, "1 s g k"], v: Float64[Tensor, "1 s g k"], window: int
) -> Float64[Tensor, "1 c h k"]:
    """Of the last c ids, some at a time, by matrix products: PyTorch's CPU kernel for float64 takes several times as
    long."""
    size, first, parts = k.shape[1], k.shape[1] - q.shape[1], list[Tensor]()
    queries, keys, values = heads_first(q, k, v)
    for begin in range(first, size, QUERIES):
        end, oldest = min(begin + QUERIES, size), max(0, begin - window + 1)
        query, key = torch.arange(begin, end, device=q.device), torch.arange(oldest, end, device=q.device)
        distance = query[:, None] - key
        seen, mask = slice(oldest, end), added((distance < 0) | (distance >= window))
        part = queries[..., begin - first : end - first, :]
        parts.append(attend_dense(part, keys[..., seen, :], values[..., seen, :], mask))
    return positions_first(parts)

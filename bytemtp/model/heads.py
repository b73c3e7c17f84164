"""Head topologies: what each head computes between the trunk and the unembedding, and which output it reads.

Topologies (Gloeckle et al. 2024, sections 2 and 3.6; DeepSeek-V3, section 2.2; branched is ours) differ only in what a
head's link is and in which output it reads, so each is a few lines of `links_for` and `chains_for`:

    parallel    link = transformer layer on z                        U(link_i(z))
    causal      link = transformer layer on the head before          U(link_i(... link_0(z)))
    anticausal  link = transformer layer on the head behind          U(link_i(... link_n-1(z)))
    linear      link = d x d matrix on z; head 0 reads z itself      U(W_i z)
    replicated  no link; every head has its own unembedding          U_i(z)
    branched    link = transformer layer on z, one of head 0 and     U_0(link_0(z)), U_i(link_1(z))
                one that all others share; unembeddings as above
    deepseek    link = MTP module on the head before and on the      U(link_i(link_i-1, Emb(t_s+i)))
                embedding of the byte i ahead; head 0's is a layer

With `transitions` (not for deepseek) head i > 0 also has a table T_i [v v], which starts at zero, and the logits at
position s become U(...) + T_i[t_s+i]: a bias by the byte just before the one predicted, in training the true one, in
decoding the one drafted before it.  So a draft follows from the draft before it, as a parallel head's alone could not.

Shapes:  b batch, s position, d width, n future offset (0 = next byte), v vocabulary (padded to 264).
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from bytemtp.common.settings import ModelConfig
from bytemtp.common.vocab import EOT
from bytemtp.model.attention import Layout
from bytemtp.model.layers import Block, RMSNorm, Rope


@dataclass(frozen=True)
class Context:
    """What all layers of one forward pass share."""

    ids: Int[Tensor, "b sn"]
    """input ids and the `ahead` ids after them"""
    length: int
    """s: positions that are computed"""
    rope: Rope
    layout: Layout

    def ahead(self, offset: int) -> Int[Tensor, "b s"]:
        """The ids `offset` positions ahead of each input; EOT stands in for those beyond the end."""
        known = self.ids[:, offset : offset + self.length]
        return F.pad(known, (0, self.length - known.shape[1]), value=EOT)


class _ScaledGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: float) -> Tensor:
        ctx.weight = weight
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient * ctx.weight, None


def scale_gradient(x: Float[Tensor, "*x"], weight: float) -> Float[Tensor, "*x"]:
    """`x` itself, whose gradient is multiplied by `weight` on its way back."""
    return x if weight == 1 else _ScaledGradient.apply(x, weight)


class DeepSeekModule(nn.Module):
    """Sequential MTP module: h' = M [RMSNorm(h); RMSNorm(Emb(t))], then one layer (DeepSeek-V3, equations 21-22)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.hidden_norm, self.embed_norm = RMSNorm(config.dim), RMSNorm(config.dim)
        self.merge = nn.Linear(2 * config.dim, config.dim, bias=False)
        self.block = Block(config)

    def forward(self, x: Tensor, embedded: Tensor, context: Context) -> Tensor:
        return self.block(self.merged(x, embedded), context.rope, context.layout)

    def merged(self, x: Tensor, embedded: Tensor) -> Tensor:
        return self.merge(torch.cat([self.hidden_norm(x), self.embed_norm(embedded)], dim=-1))


def links_for(config: ModelConfig) -> list[nn.Module]:
    """One module a head: what it computes before the norm and the unembedding."""
    n = config.n_future
    match config.topology:
        case "parallel" | "causal" | "anticausal":
            return [Block(config) for _ in range(n)]
        case "deepseek":
            return [Block(config), *(DeepSeekModule(config) for _ in range(n - 1))]
        case "linear":
            return [nn.Identity(), *(nn.Linear(config.dim, config.dim, bias=False) for _ in range(n - 1))]
        case "replicated":
            return [nn.Identity() for _ in range(n)]
        case "branched":
            return [*(Block(config) for _ in range(config.head_layers)), *(nn.Identity() for _ in range(n - 2))]


def chains_for(config: ModelConfig) -> list[list[int]]:
    """Heads in order of computation: each chain starts at the trunk, each head in it reads the one before."""
    heads = list(range(config.n_future))
    match config.topology:
        case "causal" | "deepseek":
            return [heads]
        case "anticausal":
            return [heads[::-1]]
        case "branched":
            return [chain for chain in (heads[:1], heads[1:]) if chain]
        case _:
            return [[i] for i in heads]

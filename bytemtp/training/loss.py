"""The training loss, and the backward pass whose memory does not grow with the number of heads.

    loss = mean over heads i of  (sum over valid positions p of -log P_i(id[p + 1 + i])) / (number of valid positions)

Sequential backward (Gloeckle et al. 2024, section 2): the trunk runs once; each head in turn runs forward and backward
down to a detached copy of the trunk's output, which frees that head's activations before the next head starts; then
one backward pass through the trunk takes the summed gradient.  Chained heads (causal, anticausal, deepseek) are cut the
same way at every link and walked in reverse, so only one head's logits are alive at a time, though every link's
activations are.  `mode="joint"` is the slow, obvious twin: one graph, one backward.  Tests hold the two equal for every
topology.

Shapes:  b batch, s position, d width, n future offset; ids are [b, s + n].
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from bytemtp.model.heads import Context
from bytemtp.model.layers import compile_once
from bytemtp.model.model import ByteMTP, unembed

IGNORED = -100
"""Target of a position that has none: its document has ended, or the row has."""


@dataclass(frozen=True)
class HeadLosses:
    """Cross-entropy of each head, summed, so that losses of several batches add up exactly."""

    nats: Float[Tensor, " n"]
    """sum over valid positions, in float64"""
    counts: Int[Tensor, " n"]
    """valid positions"""

    def __add__(self, other: "HeadLosses") -> "HeadLosses":
        return HeadLosses(self.nats + other.nats, self.counts + other.counts)

    @property
    def per_head(self) -> Float[Tensor, " n"]:
        """Mean nats a target; nan for a head without any target."""
        return self.nats / self.counts

    @property
    def mean(self) -> float:
        """The loss: heads without a target (documents shorter than their reach) count as zero, as in the gradient."""
        return float(self.per_head.nan_to_num().mean())

    @property
    def bits_per_byte(self) -> list[float]:
        return (self.per_head / math.log(2)).tolist()


def targets_of(ids: Int[Tensor, "b sn"], document_ids: Int[Tensor, "b sn"], i: int, n: int) -> Int[Tensor, "b s"]:
    """Ids i + 1 ahead of each input; IGNORED beyond the end of its document (whose EOT still counts) and on padding.

    `document_ids` count the EOTs up to and including a position, so an EOT belongs to the document that it opens as an
    input, and ends the document before it as a target: the target at q is valid for p when q - 1 is in p's document.
    """
    s = ids.shape[1] - n
    targets, here = ids[:, i + 1 : i + 1 + s], document_ids[:, :s]
    same_document = (document_ids[:, i : i + s] == here) & (here >= 0) & (document_ids[:, i + 1 : i + 1 + s] >= 0)
    return targets.masked_fill(~same_document, IGNORED)


def valid_target_counts(ids: Int[Tensor, "b sn"], document_ids: Int[Tensor, "b sn"], n: int) -> Int[Tensor, " n"]:
    """Valid targets of each head."""
    return torch.stack([(targets_of(ids, document_ids, i, n) != IGNORED).sum() for i in range(n)])


def backward(
    model: ByteMTP,
    ids: Int[Tensor, "b sn"],
    document_ids: Int[Tensor, "b sn"],
    counts: Int[Tensor, " n"] | None = None,
    mode: Literal["sequential", "joint"] = "sequential",
) -> HeadLosses:
    """Forward and backward; gradients are added to `.grad`.  Returns the losses, detached.

    When a batch is split for accumulation, pass the whole batch's `valid_target_counts` as `counts`: the gradients of
    the parts then sum to exactly the whole batch's gradient.
    """
    n = model.config.n_future
    with model.autocast():
        context = model.context(ids, ids.shape[1] - n, document_ids)
        z = model.run_trunk(context)
    targets = Targets(ids, document_ids, valid_target_counts(ids, document_ids, n) if counts is None else counts)
    nats = (_backward_joint if mode == "joint" else _backward_sequential)(model, z, context, targets)
    own_counts = targets.counts if counts is None else valid_target_counts(ids, document_ids, n)
    return HeadLosses(torch.stack(nats).double(), own_counts)


@torch.no_grad()
def evaluate(model: ByteMTP, ids: Int[Tensor, "b sn"], document_ids: Int[Tensor, "b sn"]) -> HeadLosses:
    """Losses without gradients, one head's logits at a time."""
    n = model.config.n_future
    with model.autocast():
        context = model.context(ids, ids.shape[1] - n, document_ids)
        hidden = model.heads(model.run_trunk(context), context)
    targets = Targets(ids, document_ids, valid_target_counts(ids, document_ids, n))
    nats = torch.stack([_head_nats(model, i, x, targets.of(i)) for i, x in enumerate(hidden)])
    return HeadLosses(nats.double(), targets.counts)


@dataclass(frozen=True)
class Targets:
    """Targets and weights of all heads, each made only when its head's turn comes."""

    ids: Tensor
    document_ids: Tensor
    counts: Tensor

    def of(self, i: int) -> Int[Tensor, "b s"]:
        return targets_of(self.ids, self.document_ids, i, len(self.counts))

    def weight(self, i: int) -> Tensor:
        """Factor of head i's summed nats in the loss."""
        return 1 / (self.counts[i].clamp_min(1) * len(self.counts))


def _backward_joint(model: ByteMTP, z: Tensor, context: Context, targets: Targets) -> list[Tensor]:
    with model.autocast():
        hidden = model.heads(z, context)
    nats = [_head_nats(model, i, x, targets.of(i)) for i, x in enumerate(hidden)]
    torch.stack([x * targets.weight(i) for i, x in enumerate(nats)]).sum().backward()
    return [x.detach() for x in nats]


def _backward_sequential(model: ByteMTP, z: Tensor, context: Context, targets: Targets) -> list[Tensor]:
    leaf = z.detach().requires_grad_(z.requires_grad)  # a frozen trunk (train.freeze) needs no gradient
    nats: dict[int, Tensor] = {}
    for chain in model.chains:
        _walk_chain(model, chain, leaf, context, targets, nats)
    if z.requires_grad:
        z.backward(leaf.grad)
    return [nats[i] for i in range(len(nats))]


def _walk_chain(
    model: ByteMTP, chain: list[int], leaf: Tensor, context: Context, targets: Targets, nats: dict[int, Tensor]
) -> None:
    """Forward along the chain with a cut after every link, then loss and backward link by link from its far end."""
    links: list[tuple[int, Tensor, Tensor]] = []
    x = leaf
    for i in chain:
        with model.autocast():
            out = model.link(i, x, context)
        x = out.detach().requires_grad_(out.requires_grad)
        links.append((i, out, x))
    while links:
        i, out, x = links.pop()
        loss = _head_nats(model, i, x, targets.of(i))
        if loss.requires_grad:
            (loss * targets.weight(i)).backward()
        if out.requires_grad:
            out.backward(x.grad)
        nats[i] = loss.detach()
        del out, x, loss  # frees this link's activations before the next link's backward


def _head_nats(model: ByteMTP, i: int, x: Tensor, targets: Tensor) -> Tensor:
    """Summed cross-entropy of head i from its hidden states [b s d]."""
    function = compile_once(_nats) if model.compiled else _nats
    with model.autocast():
        return function(x, *model.unembedding(i), targets)


def _nats(x: Tensor, norm: Tensor, unembedding: Tensor, padding: Tensor, targets: Tensor) -> Tensor:
    logits = unembed(x, norm, unembedding, padding)
    wide = logits if logits.dtype == torch.float64 else logits.float()
    return F.cross_entropy(wide.flatten(0, 1), targets.flatten(), ignore_index=IGNORED, reduction="sum")

"""Token-order prediction: a further objective of the trunk, which asks in what order the ids ahead come.

    share of id v at position p  =  e^-d / sum over ids of e^-d        d: how far ahead of p it comes next
    loss  =  sum over positions p and ids v of  -share * log softmax(order head)[v]  /  number of positions

This is TOP of Zuhri et al. 2025 (arXiv 2508.19228): an id's score is W - d inside a window of W ids and -inf outside,
and the loss is the cross-entropy with the softmax of the scores (ListNet).  W drops out of the softmax.  Their window
is as long as a row; here it ends with the row or with the document, whose EOT still counts.  An id counts e times less
for each position that it comes later, so the next one has 63 % or more, and those beyond some ten hardly count.

The order head is one matrix on the trunk's normed output.  What it learns goes into the trunk in full; decoding does
without it.

Shapes:  b batch, s position, c position inside a piece of the rows, d width, v vocabulary (257, without padding).
"""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from bytemtp.common.vocab import EOT, VOCAB_SIZE
from bytemtp.model.layers import rms_norm, wide
from bytemtp.model.model import ByteMTP

NEVER = 2**30
"""Place of an id that does not come any more."""
FAR = 64
"""Positions from which on an id has no share: e^-64 is lost in rounding, and still smaller numbers are slow."""


def order_nats(
    model: ByteMTP, z: Float[Tensor, "b s d"], targets: Int[Tensor, "b s"], room: int
) -> Iterator[Float[Tensor, ""]]:
    """Summed cross-entropy of the order head, in pieces from the end of the rows; none if the model has no such head.

    z: the trunk's output.
    targets: the id after each position, negative where there is none.
    room: bytes of a piece's float32 logits and shares; what makes them takes some times as much.
    """
    if model.order_head is None:
        return
    size = max(1, room // (2 * 4 * VOCAB_SIZE * len(targets)))
    later = torch.full((len(targets), VOCAB_SIZE), NEVER, dtype=torch.int32, device=targets.device)
    for end in range(targets.shape[1], 0, -size):
        start = max(0, end - size)
        places = next_places(targets[:, start:end], start, later)
        later = places[:, 0].clone()
        yield _nats(model, model.order_head.weight, z[:, start:end], places, start)


def next_places(targets: Int[Tensor, "b c"], start: int, later: Int[Tensor, "b v"]) -> Int[Tensor, "b c v"]:
    """Where each id comes next, at a position or behind it.

    start: place of the first of these targets in the row; later: where each id comes next behind the last of them.
    """
    here = torch.arange(start, start + targets.shape[1], dtype=torch.int32, device=targets.device)
    is_there = targets[..., None] == torch.arange(later.shape[1], device=targets.device)
    places = torch.where(is_there, here[:, None], NEVER)
    places[:, -1] = torch.minimum(places[:, -1], later)
    return places.flip(1).cummin(1).values.flip(1)


def shares_of(places: Int[Tensor, "b c v"], start: int, dtype: torch.dtype) -> Float[Tensor, "b c v"]:
    """What the order head is to say: nothing of ids behind the end of the document, and nothing at all in padding."""
    here = torch.arange(start, start + places.shape[1], dtype=places.dtype, device=places.device)
    ahead = (places - here[:, None]).clamp_max(FAR)
    counts = (places <= places[..., EOT, None]) & (ahead < FAR)
    weights = (-ahead).to(dtype).exp().where(counts, 0.0)
    return weights / weights.sum(-1, keepdim=True).clamp_min(1.0)  # that of the next id alone is 1


def _nats(
    model: ByteMTP, matrix: Tensor, z: Float[Tensor, "b c d"], places: Int[Tensor, "b c v"], start: int
) -> Float[Tensor, ""]:
    with model.autocast():
        logits = F.linear(rms_norm(z, model.norm.weight), matrix)[..., :VOCAB_SIZE]
    log_shares = F.log_softmax(wide(logits), -1)
    return -(shares_of(places, start, log_shares.dtype) * log_shares).sum()

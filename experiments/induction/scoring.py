"""Does a model expect the bytes of a name it has read before?  Teacher-forced: each byte after the story's own ones.

Shapes:  b stories, s bytes of the longest one, padded.
"""

import math
import re
from collections.abc import Sequence
from statistics import fmean

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

from bytemtp import ByteMTP
from bytemtp.common.vocab import EOT
from experiments.induction.names import PART
from experiments.induction.stories import Story

BATCH = 16
"""Stories a forward pass."""


def scores(model: ByteMTP, stories: Sequence[Story]) -> dict[str, float]:
    """Shares from 0 to 1 of mentions, and bits per byte.

    second: all bytes of the second part are likeliest, each after all before it; mentions after a name's first.
    byte: of the bytes of these second parts.
    start: of the first bytes of these second parts.
    new: as `second`, of first mentions, which nobody can know.
    """
    again, first, bits = tallied(model, stories)
    return {
        "second": fmean([all(part) for part in again]),
        "byte": fmean([right for part in again for right in part]),
        "start": fmean([part[0] for part in again]),
        "new": fmean([all(part) for part in first]),
        "bpb": bits / sum(len(story.text.encode()) for story in stories),
    }


def tallied(model: ByteMTP, stories: Sequence[Story]) -> tuple[list[list[bool]], list[list[bool]], float]:
    """Which bytes of second parts are expected, of later and of first mentions; and the bits of all bytes."""
    parts: dict[bool, list[list[bool]]] = {False: [], True: []}
    total = 0.0
    for place in range(0, len(stories), BATCH):
        batch = stories[place : place + BATCH]
        texts = [story.text.encode() for story in batch]
        right, bits = expected(model, texts)
        total += float(bits.sum())
        for row, text, story in zip(right, texts, batch, strict=True):
            for start, is_first in mentions(text, story.names):
                parts[is_first].append(row[start + PART : start + 2 * PART].tolist())
    return parts[False], parts[True], total


@torch.no_grad()
def expected(model: ByteMTP, texts: Sequence[bytes]) -> tuple[Bool[Tensor, "b s"], Float[Tensor, "b s"]]:
    """Of each byte: whether head 1 finds it likeliest, and its bits; False and 0 behind a text's end."""
    longest = max(map(len, texts))
    ids: Int[Tensor, "b s"] = torch.tensor([[EOT, *text, *[EOT] * (longest - len(text))] for text in texts])
    is_text = torch.arange(longest) < torch.tensor(list(map(len, texts)))[:, None]
    logits = model(ids[:, :-1].to(model.device))[0].float().cpu()
    nats = F.cross_entropy(logits.transpose(1, 2), ids[:, 1:], reduction="none")
    return (logits.argmax(-1) == ids[:, 1:]) & is_text, nats / math.log(2) * is_text


def mentions(text: bytes, names: Sequence[str]) -> list[tuple[int, bool]]:
    """Where a name begins, and whether for the first time in this text; in the order of the text."""
    found = [(one.start(), one[0]) for name in names for one in re.finditer(rf"\b{name}\b".encode(), text)]
    first = {name: start for start, name in sorted(found, reverse=True)}
    return [(start, first[name] == start) for start, name in sorted(found)]

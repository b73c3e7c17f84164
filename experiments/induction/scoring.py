"""Does a model expect the bytes of a name it has read before?  Teacher-forced: each byte after the story's own ones.

Shapes:  b stories, s bytes of the longest one, padded.
"""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

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


@dataclass(frozen=True)
class Mention:
    """A place where a name stands."""

    row: int
    """of the story, in its batch"""
    start: int
    """its first byte"""
    is_first: bool
    """of this name in this story"""


@dataclass(frozen=True)
class Tally:
    """What was expected, of all stories."""

    again: list[list[bool]]
    """of each mention that is not the name's first: which bytes of the second part head 1 finds likeliest"""
    first: list[list[bool]]
    """the same of first mentions"""
    bits: float
    """of all bytes"""
    bytes: int


def scores(model: ByteMTP, stories: Sequence[Story]) -> dict[str, float]:
    """Shares from 0 to 1 of mentions, and bits per byte.

    second: all bytes of the second part are likeliest, each after all before it; mentions after a name's first.
    byte: of the bytes of these second parts.
    start: of the first bytes of these second parts.
    new: as `second`, of first mentions, which nobody can know.
    """
    tally = tallied(model, stories)
    return {
        "second": mean([all(part) for part in tally.again]),
        "byte": mean([right for part in tally.again for right in part]),
        "start": mean([part[0] for part in tally.again]),
        "new": mean([all(part) for part in tally.first]),
        "bpb": tally.bits / tally.bytes,
    }


def mean(values: Sequence[bool]) -> float:
    return sum(values) / len(values)


def tallied(model: ByteMTP, stories: Sequence[Story]) -> Tally:
    tally = Tally([], [], 0.0, 0)
    for place in range(0, len(stories), BATCH):
        tally = with_batch(tally, model, stories[place : place + BATCH])
    return tally


def with_batch(tally: Tally, model: ByteMTP, stories: Sequence[Story]) -> Tally:
    texts = [story.text.encode() for story in stories]
    right, bits = expected(model, texts)
    found = [one for row, story in enumerate(stories) for one in mentions(row, texts[row], story.names)]
    parts = {kind: [second_part(right, one) for one in found if one.is_first == kind] for kind in (False, True)}
    total = tally.bits + float(bits.sum())
    return Tally(tally.again + parts[False], tally.first + parts[True], total, tally.bytes + sum(map(len, texts)))


@torch.no_grad()
def expected(model: ByteMTP, texts: Sequence[bytes]) -> tuple[Bool[Tensor, "b s"], Float[Tensor, "b s"]]:
    """Of each byte: whether head 1 finds it likeliest, and its bits; False and 0 behind a text's end."""
    longest = max(map(len, texts))
    ids: Int[Tensor, "b s"] = torch.tensor([[EOT, *text, *[EOT] * (longest - len(text))] for text in texts])
    is_text = torch.arange(longest) < torch.tensor(list(map(len, texts)))[:, None]
    logits = model(ids[:, :-1].to(model.device))[0].float().cpu()
    nats = F.cross_entropy(logits.transpose(1, 2), ids[:, 1:], reduction="none")
    return (logits.argmax(-1) == ids[:, 1:]) & is_text, nats / math.log(2) * is_text


def mentions(row: int, text: bytes, names: Sequence[str]) -> list[Mention]:
    """In the order of the text."""
    seen: set[bytes] = set()
    result = []
    for found in re.finditer("|".join(names).encode() or rb"(?!)", text):
        result.append(Mention(row, found.start(), found[0] not in seen))
        seen.add(found[0])
    return result


def second_part(right: Bool[Tensor, "b s"], mention: Mention) -> list[bool]:
    start = mention.start + PART
    hits: list[bool] = right[mention.row, start : start + PART].tolist()
    return hits

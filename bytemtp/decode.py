"""Plain decoding: one byte a forward pass.

A model sees at most its training length, so the context is the last `context` ids; every pass runs over all of them.
That is slow and obviously right.

Shapes:  s position, v vocabulary.
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from bytemtp.errors import UserError
from bytemtp.model import ByteMTP
from bytemtp.vocab import EOT


@dataclass(frozen=True)
class Generation:
    """What `generate` returns."""

    data: bytes
    """the new bytes; the prompt is not repeated"""
    stats: dict[str, Any]
    """mode, bytes, forwards, bytes_per_forward, bytes_per_s, accepted, accept_rate_by_position, stopped_by"""


def generate(
    model: ByteMTP,
    prompt: bytes,
    max_bytes: int,
    *,
    temperature: float = 0.0,
    seed: int = 0,
    context: int = 1024,
) -> Generation:
    """Continue `prompt` by up to `max_bytes` bytes, fewer if the model ends the document.

    Temperature 0 takes the likeliest byte.  An empty prompt starts a new document.  UserError for negative arguments.
    """
    start = time.perf_counter()
    data = bytearray()
    stopped_by = "max_bytes"
    forwards = 0
    for next_id in next_ids(model, prompt, max_bytes, temperature, seed, context):
        forwards += 1
        if next_id == EOT:
            stopped_by = "endoftext"
            break
        data.append(next_id)
    stats = {
        "mode": "ar",
        "bytes": len(data),
        "forwards": forwards,
        "bytes_per_forward": len(data) / max(forwards, 1),
        "bytes_per_s": len(data) / (time.perf_counter() - start),
        "accepted": {0: forwards},  # nothing is drafted, so every pass accepts no draft
        "accept_rate_by_position": [],
        "stopped_by": stopped_by,
    }
    return Generation(bytes(data), stats)


def next_ids(model: ByteMTP, prompt: bytes, count: int, temperature: float, seed: int, context: int) -> Iterator[int]:
    """Up to `count` ids, one a pass, each chosen before the next is asked for."""
    if count < 0:
        raise UserError(f"max_bytes is {count}; it must be 0 or more")
    if not temperature >= 0:
        raise UserError(f"temperature is {temperature}; it must be 0 (greedy) or more")
    generator = torch.Generator().manual_seed(seed)
    ids = [EOT, *prompt]
    for _ in range(count):
        with torch.inference_mode():
            logits = model(torch.tensor([ids[-context:]], device=model.device))[0, 0, -1]
        ids.append(choose(logits.float().cpu(), temperature, generator))
        yield ids[-1]


def choose(logits: Float[Tensor, " v"], temperature: float, generator: torch.Generator) -> int:
    """The likeliest id, or one drawn from softmax(logits / temperature)."""
    if temperature == 0:
        return int(logits.argmax())
    probabilities = (logits / temperature).softmax(-1)
    return int(torch.multinomial(probabilities, 1, generator=generator))

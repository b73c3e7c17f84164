"""How well a model copies real text from its context: what the second of two copies costs.

    bits_of_copies(model, texts)    one who copies needs next to none; one who does not, as many as for the first

Texts are begun a second time after an empty line; where the second copy has begun, in its first quarter, it is no
surprise yet, and is not counted.
"""

import math
from collections.abc import Sequence

import torch

from bytemtp import ByteMTP
from bytemtp.bench.prompts import BETWEEN
from bytemtp.common.vocab import EOT


@torch.inference_mode()
def bits_of_copies(model: ByteMTP, texts: Sequence[bytes]) -> float:
    """Bits per byte of head 1 in the last three quarters of a second copy, the mean over texts of one length."""
    size = len(texts[0])
    ids = torch.tensor([[EOT, *text, *BETWEEN, *text] for text in texts])
    targets = ids[:, -(size - size // 4) :]
    nats = -model(ids[:, :-1])[0].log_softmax(-1)[:, -targets.shape[1] :].gather(2, targets[..., None])
    return nats.mean().item() / math.log(2)

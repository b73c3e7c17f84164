"""Where two greedy continuations part, and how near a tie the bytes were there.

In float32 they do not part (`verdicts.MARGIN`), nor in the native engine's bfloat16, where a pass over eight ids
computes each of them like a pass over one.  In bfloat16 by tensor operations they may: it errs far more than MARGIN, so
such passes can prefer different bytes.  The float64 lead tells whether that is what happened: it is then of the size of
bfloat16's own errors.

Try:  python -m bytemtp.generate RUN --prompt "def " --max-bytes 500 --dtype bfloat16 --engine torch --compare ar
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np

from bytemtp.common.vocab import EOT
from bytemtp.decoding.corpus_index import same
from bytemtp.decoding.generate import Generation
from bytemtp.decoding.judge import Float64Judge
from bytemtp.decoding.sampling import masked, top_two
from bytemtp.decoding.utf8 import legal, state_after
from bytemtp.model.model import ByteMTP


@dataclass(frozen=True)
class Divergence:
    """The first difference of two continuations of a prompt."""

    place: int
    """of the first new byte that differs, from 0; the end of the shorter one if the longer one begins with it"""
    lead: float
    """of the best byte's float64 logit over the second best's, after the bytes that both have"""

    def __str__(self) -> str:
        return (
            f"first difference at byte {self.place}; "
            f"the two best bytes there differ by {self.lead:.3g} in float64 logits"
        )


def divergence(
    model: ByteMTP,
    prompt: bytes,
    one: Generation,
    other: Generation,
    *,
    stop: Sequence[bytes] = (),
    utf8: bool = False,
) -> Divergence | None:
    """How two greedy generations differ; None if they wrote the same.  stop, utf8: as both were decoded with."""
    if one.data == other.data:
        return None
    pairs = product(_decided(one, stop), _decided(other, stop))
    place, common = max((same(a, b), a) for a, b in pairs)
    ids = np.array([EOT, *prompt, *common[:place]])
    logits = Float64Judge(model, model.reach or len(ids)).logits(ids)
    allowed = legal(state_after(prompt + common[:place])) if utf8 else None
    _, (lead,) = top_two(masked(logits, allowed)[None])
    return Divergence(place, lead)


def _decided(out: Generation, stop: Sequence[bytes]) -> list[bytes]:
    """The bytes as decoded.  A stop string was cut off, and which is not known: with several, all that it may be."""
    return [out.data + text for text in stop] if out.stats.get("stopped_by") == "stop" else [out.data]

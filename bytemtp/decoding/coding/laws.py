"""Head 1's logits as whole numbers, and bytes by them into a stream and out of it.

A range coder (Martin 1979), here constriction's (Bamler 2022, arXiv 2201.01741), takes log2(1/p) bits for a byte of
probability p.  Both sides must have the very same p.  So laws are counts out of TOTAL, from the exponential on made in
whole numbers alone, and constriction only takes them as they are.

Try:  python -c "from bytemtp.decoding.coding.laws import *; print(counts_of(np.zeros((1, 264), np.float32)))"
Shapes:  c places, each with what head 1 expects there; v vocabulary.
"""

from functools import cache
from itertools import zip_longest
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float32, Float64, Int64

from bytemtp.common.errors import UserError
from bytemtp.decoding.corpus_index import same
from bytemtp.decoding.verdicts import check_finite

BYTES = 256
TOTAL = 1 << 24
"""What the counts of a place add up to: constriction's models all have this precision."""
FINE = 1 << 38
"""The likeliest byte's share before counts are made of shares.  FINE * TOTAL fits 63 bits."""


class Damaged(Exception):
    """A stream that no encoder wrote by these laws."""


def counts_of(logits: Float32[np.ndarray, "c v"]) -> Int64[np.ndarray, "c 256"]:
    """Counts of the bytes, proportional to their probabilities but 1 at least, so that any byte can be coded.

    EOT and the padding get none.  What rounding leaves over goes to the likeliest byte.  UserError for logits that are
    not finite.
    """
    check_finite(logits)
    x = np.ascontiguousarray(logits[:, :BYTES], np.float64)
    shares = (np.exp(x - x.max(1, keepdims=True)) * FINE).astype(np.int64)
    counts = 1 + shares * (TOTAL - BYTES) // shares.sum(1, keepdims=True)
    counts[np.arange(len(counts)), counts.argmax(1)] += TOTAL - counts.sum(1)
    return counts


def weights(counts: Int64[np.ndarray, "c 256"]) -> Float64[np.ndarray, "c 256"]:
    """What constriction makes exactly these counts of: it gives each byte 1 and deals TOTAL - 256 out by weight."""
    return (counts - 1).astype(np.float64)


@runtime_checkable
class Stream(Protocol):
    """What decides the ids of a text in place of head 1."""

    def decide(self, counts: Int64[np.ndarray, "c 256"], drafts: list[int]) -> list[int]:
        """The next ids, by the laws before the first draft and behind each: those drafts that are right, and one more.

        There is one law more than drafts, and the text does not end before them.
        """


class Writing:
    """A text on its way into a stream."""

    def __init__(self, text: bytes) -> None:
        self.text, self.place = np.frombuffer(text, np.uint8).astype(np.int32), 0
        self.encoder = constriction().stream.queue.RangeEncoder()

    def decide(self, counts: Int64[np.ndarray, "c 256"], drafts: list[int]) -> list[int]:
        ids = self.text[self.place : self.place + 1 + len(drafts)]
        ids = ids[: 1 + same(ids.tolist(), drafts)]
        self.encoder.encode(ids, family(), weights(counts[: len(ids)]))
        self.place += len(ids)
        known: list[int] = ids.tolist()
        return known

    @property
    def stream(self) -> bytes:
        """All that has been decided; words of 32 bits, the low byte first."""
        words: np.ndarray = self.encoder.get_compressed()
        return words.astype("<u4").tobytes()


class Reading:
    """A text on its way out of a stream."""

    def __init__(self, stream: bytes) -> None:
        words = np.frombuffer(stream, "<u4").astype(np.uint32)
        self.decoder = constriction().stream.queue.RangeDecoder(words)

    def decide(self, counts: Int64[np.ndarray, "c 256"], drafts: list[int]) -> list[int]:
        ids: list[int] = []
        for law, draft in zip_longest(weights(counts), drafts):
            ids.append(self._next(law))
            if ids[-1] != draft:
                break
        return ids

    def _next(self, law: Float64[np.ndarray, " 256"]) -> int:
        try:
            return int(self.decoder.decode(family(), law[None])[0])
        except AssertionError as error:  # what constriction raises for "invalid data"
            raise Damaged from error


@cache
def constriction() -> Any:
    """The library.  UserError if it is not installed."""
    try:
        import constriction
    except ImportError as error:
        raise UserError(f"compression needs constriction ({error}); pip install 'bytemtp[compress]'") from error
    return constriction


@cache
def family() -> Any:
    """Categorical distributions, one for each byte.  perfect: constriction would look for better counts than ours."""
    return constriction().stream.model.Categorical(perfect=False)

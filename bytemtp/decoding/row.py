"""One text in the making: its bytes, its random numbers, when it stops, and what is counted about it.

row = Row(b"def ", number=0, max_bytes=100, rule=Rule(), seed=0, stop=(b"\n\n",), utf8=False)
"""

import random
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool

from bytemtp.common.errors import UserError
from bytemtp.common.vocab import EOT
from bytemtp.decoding.passes import Pass, pass_stats
from bytemtp.decoding.sampling import Rule
from bytemtp.decoding.utf8 import advance, legal, state_after


class Row:
    """A prompt and what follows it.  (seed, number) gives its random numbers."""

    def __init__(
        self, prompt: bytes, number: int, max_bytes: int, rule: Rule, seed: int, stop: tuple[bytes, ...], utf8: bool
    ) -> None:
        if max_bytes < 0:
            raise UserError(f"max_bytes is {max_bytes}; it must be 0 or more")
        if b"" in stop:
            raise UserError("a stop string is empty; leave it out")
        self.prompt, self.max_bytes, self.rule, self.stop = prompt, max_bytes, rule, stop
        self.random = random.Random(f"{seed} {number}")
        self.data = bytearray()
        self.origins: list[int] = []
        """for each byte the depth of the draft that it was; 0 if head 1 itself gave it"""
        self.stopped_by = "" if max_bytes else "max_bytes"
        self.near_ties = 0
        """that were decided by `Float64Judge`"""
        self.utf8_state = state_after(prompt) if utf8 else None
        """where in a character the text ends, if only well-formed UTF-8 is wanted"""
        self._passes: Counter[Pass] = Counter()

    @property
    def left(self) -> int:
        """Bytes that may still come."""
        return self.max_bytes - len(self.data)

    @property
    def settled(self) -> int:
        """Bytes at the front of `data` that no stop string can take back any more."""
        if self.stopped_by:
            return len(self.data)
        for size in range(min(len(self.data), max(map(len, self.stop), default=1) - 1), 0, -1):
            if any(stop.startswith(self.data[-size:]) for stop in self.stop):
                return len(self.data) - size
        return len(self.data)

    def legal(self, drafts: Sequence[int] = ()) -> Bool[np.ndarray, " v"] | None:
        """Ids that may follow the text and these drafts; None if all may."""
        if self.utf8_state is None:
            return None
        state = self.utf8_state
        for draft in drafts:
            state = advance(state, draft)
        return legal(state)

    def append(self, id_: int, draft: int) -> None:
        """Append a decided id, unless it ends the text.  draft: the depth of the draft that it was, or 0."""
        if id_ == EOT:
            self.stopped_by = "endoftext"
            return
        self.data.append(id_)
        self.origins.append(draft)
        if self.utf8_state is not None:
            self.utf8_state = advance(self.utf8_state, id_)
        if ended := [len(stop) for stop in self.stop if self.data.endswith(stop)]:
            del self.data[-max(ended) :], self.origins[-max(ended) :]
            self.stopped_by = "stop"
        elif not self.left:
            self.stopped_by = "max_bytes"

    def extend(self, ids: Sequence[int], drafts: int) -> int:
        """Append decided ids, of which the first so many were a chain of drafts, until the text ends.

        Returns how many of the drafts were appended.
        """
        for number, id_ in enumerate(ids, 1):
            self.append(id_, draft=number if number <= drafts else 0)
            if self.stopped_by:
                return min(number, drafts)
        return drafts

    def extend_by_passes(self, data: bytes, passes: Sequence[Pass]) -> None:
        """The same for what several passes decided, each as many drafts as it accepted and one byte more, where nothing
        can end the text."""
        self.data += data
        for one in passes:
            self.origins += range(1, 1 + one.accepted)
            self.origins.append(0)
        self._passes.update(passes)

    def count_pass(self, depths: Sequence[int], accepted: int, source: str = "heads") -> None:
        """A pass verified drafts of these depths, which were from there."""
        self._passes[Pass(source, len(depths), max(depths, default=0), accepted)] += 1

    @property
    def passes(self) -> int:
        """That the row has been in."""
        return self._passes.total()

    def stats(self, seconds: float) -> dict[str, Any]:
        """The fields of `Generation.stats` that are the row's own: `exact` counts near ties; see also `pass_stats`."""
        forwards = self.passes
        return {
            "bytes": len(self.data),
            "forwards": forwards,
            "bytes_per_forward": len(self.data) / max(forwards, 1),
            "seconds": seconds,
            "bytes_per_s": len(self.data) / seconds if seconds else 0.0,
            **pass_stats(self._passes.elements()),
            "stopped_by": self.stopped_by,
            "exact": self.near_ties,
        }

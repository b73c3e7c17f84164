"""Caches as rings: id number n of a text lies in slot n % slots, so memory follows what can still be seen.

A ring grows with the text until it holds as much as a pass can look back on; from then on new ids overwrite the oldest.

    slots_for(256, end=300, reach=584)        # 512
    moves(np.array([300]), 256, 512)          # from where to where the last 256 ids of a text of 300 go

Shapes:  b rows, s slots.
"""

import numpy as np
from jaxtyping import Int

SLOTS = 256
"""A ring has a multiple of so many slots, so that the next text can often use the last one's memory."""

PIECE = 512
"""Most ids of a prompt that go through the model at a time."""

STEP_BACK = 64
"""Slots beyond what a pass sees and writes: a caller may give up so many ids and go on before them."""


def round_up(size: int, multiple: int) -> int:
    return -(-size // multiple) * multiple


def slots_for(held: int, end: int, reach: int) -> int:
    """Slots that a ring of `held` should have.

    end: of the longest text; reach: ids that a pass looks back on or appends.
    """
    reach = reach + STEP_BACK
    needed = min(end, reach)
    return held if needed <= held else round_up(min(max(needed, 2 * held), reach), SLOTS)


def moves(end: Int[np.ndarray, " b"], held: int, slots: int) -> tuple[Int[np.ndarray, "b s"], Int[np.ndarray, "b s"]]:
    """Slots of the last `held` ids of each row, in a ring of so many slots and in one of `slots`."""
    ids = end[:, None] - 1 - np.arange(held)
    return ids % held, ids % slots

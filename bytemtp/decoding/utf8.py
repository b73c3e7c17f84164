"""Which bytes may come next in well-formed UTF-8 (Unicode 16, table 3-7), as a state machine over bytes.

state = advance(START, 0xE2); legal(state)   # bool [264]: what may follow
"""

from functools import cache

import numpy as np
from jaxtyping import Bool

from bytemtp.common.vocab import EOT, PADDED_VOCAB_SIZE

State = tuple[int, int, int]
"""bytes that the open character still needs, and the range of the next one"""

START: State = (0, 0, 0)
"""between characters"""

_LEADS: tuple[tuple[range, State], ...] = (
    (range(0x80), START),
    (range(0xC2, 0xE0), (1, 0x80, 0xBF)),
    (range(0xE0, 0xE1), (2, 0xA0, 0xBF)),
    (range(0xE1, 0xED), (2, 0x80, 0xBF)),
    (range(0xED, 0xEE), (2, 0x80, 0x9F)),
    (range(0xEE, 0xF0), (2, 0x80, 0xBF)),
    (range(0xF0, 0xF1), (3, 0x90, 0xBF)),
    (range(0xF1, 0xF4), (3, 0x80, 0xBF)),
    (range(0xF4, 0xF5), (3, 0x80, 0x8F)),
)


def advance(state: State, byte: int) -> State:
    """The state after one more byte.  One that is illegal there starts anew, as a decoder that replaces it would."""
    needed, low, high = state
    if needed and low <= byte <= high:
        return (needed - 1, 0x80, 0xBF) if needed > 1 else START
    return next((after for leads, after in _LEADS if byte in leads), START)


def state_after(data: bytes) -> State:
    state = START
    for byte in data[-4:]:
        state = advance(state, byte)
    return state


@cache
def legal(state: State) -> Bool[np.ndarray, " v"]:
    """Ids that may come next; a document may end only between characters."""
    needed, low, high = state
    allowed = np.zeros(PADDED_VOCAB_SIZE, dtype=np.bool_)
    if needed:
        allowed[low : high + 1] = True
    else:
        for leads, _ in _LEADS:
            allowed[leads.start : leads.stop] = True
        allowed[EOT] = True
    return allowed

"""Texts that `bench decode --run` continues, by kind.

    held-out    beginnings of files
    edit        a file, and then its beginning once more with a name replaced: the model may go on as the file does
    random      random bytes, which nothing that follows repeats

Try:  python -c "from bytemtp.bench.prompts import *; print(edited(b'one two one two ', 8, seed=0))"
"""

import keyword
import random
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np

from bytemtp.common.errors import UserError
from bytemtp.common.runtime import log
from bytemtp.common.settings import DataConfig
from bytemtp.evaluation.bits_per_byte import beginnings
from bytemtp.model.checkpoint import settings_of

Kind = Literal["held-out", "edit", "random"]
EDITED_BYTES = 2048
"""Most bytes of the file in front of its edited beginning."""
SHORTEST = 128
"""Fewest of them: where a run looks back on less than twice as many, there is no room for an edit."""
BETWEEN = b"\n\n\n"
"""Stands between the file and its edited beginning."""
NAME = re.compile(rb"\b[A-Za-z_]{3,}\b")
KEYWORDS = frozenset(word.encode() for word in keyword.kwlist)


def prompts_of(
    kind: Kind, files: Sequence[str], count: int, size: int, data: DataConfig, reach: int, seed: int = 0
) -> list[bytes]:
    """Up to `count` prompts of a kind; of random bytes, of files and of edited beginnings there are `size` in each.

    reach: bytes that the model looks back on; 0 is all.  UserError if no file can be used.
    """
    if kind == "random":
        return [row.tobytes() for row in np.random.default_rng(seed).integers(0, 256, (count, size), dtype=np.uint8)]
    if kind == "held-out":
        return beginnings(files, count, size, data)
    longest = min(EDITED_BYTES, reach // 2) if reach else EDITED_BYTES  # what is to be repeated is in sight to the end
    if longest < SHORTEST:
        raise UserError(
            f"a run looks back on {reach} bytes, but kind 'edit' needs {2 * SHORTEST}; leave it out of --kind"
        )
    texts = [edited(text, size, seed) for text in beginnings(files, count, longest, data)]
    found = [text for text in texts if text is not None]
    if not found:
        raise UserError(f"{', '.join(files)}: in none of {len(texts)} texts stands a name twice that could be replaced")
    if len(found) < len(texts):
        log(f"edit: left out: {len(texts) - len(found)} texts in which no name stands twice")
    return found


def edited(text: bytes, size: int, seed: int) -> bytes | None:
    """The text, and then its first `size` bytes with a name replaced; no more than half of it, so that a half follows.

    The name is one of at least three letters that comes again in what follows, so a copy has to keep the change up.
    None if there is none.
    """
    size = min(size, len(text) // 2)
    found = list(NAME.finditer(text))
    names = {each[0] for each in found if each.end() <= size} & {each[0] for each in found if each.start() >= size}
    names -= KEYWORDS
    if not names:
        return None
    name = random.Random(seed).choice(sorted(names))
    changed = re.sub(rb"\b" + name + rb"\b", b"new_" + name, text)
    return text + BETWEEN + changed[:size]


def reach_of(runs: Sequence[Path]) -> int:
    """Bytes that all runs can look back on; 0 is all.  UserError for what is no run."""
    settings = [settings_of(run) for run in runs]
    return min((each for one in settings for each in (one.model.window, one.train.seq_len) if each), default=0)

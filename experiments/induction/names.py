"""Names that nobody knows: two parts of a consonant and a vowel each, as in Do|bi.

There are 50 parts, so 2,500 names, of which a tenth is held out.  The letters l, m, n and s, which many real names
have, are not among the consonants.

Try:  python -c "from experiments.induction.names import *; print(draw_names(random.Random(0), 3, heldout=True))"
"""

import random
import zlib

CONSONANTS, VOWELS = "bdfgkprtvz", "aeiou"
PART = 2
"""Letters, and bytes, of a part."""
SHARE = 10
"""One name in so many is held out."""


def draw_names(source: random.Random, count: int, heldout: bool) -> tuple[str, ...]:
    """Held-out names or others; no two of them begin with the same part, so that the first part tells the second."""
    names: dict[str, str] = {}
    while len(names) < count:
        first, second = draw_part(source).capitalize(), draw_part(source)
        if is_heldout(first + second) == heldout:
            names.setdefault(first, first + second)
    return tuple(names.values())


def draw_part(source: random.Random) -> str:
    return source.choice(CONSONANTS) + source.choice(VOWELS)


def is_heldout(name: str) -> bool:
    """By the name alone, so that no two corpora disagree."""
    return zlib.crc32(name.encode()) % SHARE == 0

"""Stories from files in the form of TinyStories: texts, between them lines `<|endoftext|>`.

In those to score, characters get names of `names.py`.  A character is a word of two letters or more that has a capital
within a sentence and that no text of the file writes small; so Mom, who is also mom, is none, and neither is I.

Source: Eldan & Li 2023 (arXiv 2305.07759); names replaced as in Gloeckle et al. 2024, section 4.1.
"""

import random
import re
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path

from bytemtp.common.errors import UserError
from experiments.induction.names import draw_names
from experiments.induction.stories import Story

SEPARATOR = "<|endoftext|>"
WORD = r"\b[A-Za-z]+\b"
MOST = 8
"""Characters of a story that get names."""
INSIDE = re.compile(r"(?<=[a-z,] )[A-Z][a-z]+\b")
"""A word with a capital that does not begin a sentence."""


def read_stories(path: Path | str) -> Iterator[str]:
    """One after the other, so that the file need not fit into memory.  UserError if it cannot be read."""
    try:
        with Path(path).open(encoding="utf-8") as file:
            yield from split(file)
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read stories from {path}: {error}") from None


def split(lines: Iterable[str]) -> Iterator[str]:
    """Texts between separators, without those that are empty."""
    text: list[str] = []
    for line in chain(lines, [SEPARATOR]):
        if line.strip() != SEPARATOR:
            text.append(line)
        elif story := "".join(text).strip():
            yield story
            text = []


def renamed_stories(path: Path | str, count: int, seed: int) -> list[Story]:
    """The first so many with a character who is named twice.  UserError if there are fewer."""
    texts, source = list(read_stories(path)), random.Random(seed)
    small = {word for text in texts for word in re.findall(WORD, text) if word.islower()}
    every = (renamed(text, characters(text, small), source) for text in texts)
    chosen = [story for story in every if any(story.text.count(name) > 1 for name in story.names)][:count]
    if len(chosen) < count:
        raise UserError(f"{path} has {len(chosen)} stories with a name that comes twice; {count} are to be scored")
    return chosen


def characters(text: str, small: set[str]) -> list[str]:
    """The first so many, in the order of their first coming within a sentence."""
    return [word for word in dict.fromkeys(INSIDE.findall(text)) if word.lower() not in small][:MOST]


def renamed(text: str, words: list[str], source: random.Random) -> Story:
    """Each character with a held-out name, wherever the word stands."""
    names = dict(zip(words, draw_names(source, len(words), heldout=True), strict=True))
    return Story(re.sub(WORD, lambda found: names.get(found[0], found[0]), text), tuple(names.values()))

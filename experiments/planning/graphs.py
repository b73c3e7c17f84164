"""Star graphs as lines of bytes: arms leave a centre, and the question is the way from there to the end of one.

    dh|ad|hg|ab|bc|cf;af=abcf          degree 2 (two arms), length 4 (an arm's nodes, the centre included)

Edges in random order, each from the centre outwards; then start and goal; then the answer, the path between them.  A
node is a byte, so all questions of one kind have as many bytes.

Source: Bachmann & Nagarajan 2024 (arXiv 2403.06963), section 4; their nodes are numbers.

Try:  python -c "from experiments.planning.graphs import *; print(*questions(Star(2, 5), 3, seed=0), sep='\\n')"
"""

import random
import string
from collections.abc import Iterator, Set
from dataclasses import dataclass
from itertools import pairwise

from bytemtp.common.errors import UserError

NAMES = string.ascii_letters + string.digits


@dataclass(frozen=True)
class Star:
    """A kind of graph."""

    degree: int
    length: int
    """nodes of an arm, the centre included"""
    names: int
    """nodes are named by the first so many of `NAMES`"""

    def __post_init__(self) -> None:
        if self.degree < 1 or self.length < 2 or not self.nodes <= self.names <= len(NAMES):
            raise UserError(
                f"{self} needs degree >= 1, length >= 2 and names from {self.nodes}, its nodes, to {len(NAMES)}"
            )

    @property
    def nodes(self) -> int:
        return self.degree * (self.length - 1) + 1

    @property
    def bytes(self) -> int:
        """Of a question with its answer: edges with what ends each, start, goal and =, path."""
        return 3 * (self.nodes - 1) + 3 + self.length


@dataclass(frozen=True)
class Question:
    prompt: str
    arms: tuple[str, ...]
    """all ways from the centre outwards; the first one is the answer"""

    @property
    def answer(self) -> str:
        return self.arms[0]


def questions(star: Star, count: int, seed: int) -> Iterator[Question]:
    """The same ones for the same seed."""
    source = random.Random(seed)
    return (question(star, source) for _ in range(count))


def unheard(star: Star, count: int, seed: int, heldout: Set[str]) -> Iterator[str]:
    """Texts to train on: `questions` with their answers, without those whose prompt is in `heldout`."""
    return (one.prompt + one.answer for one in questions(star, count, seed) if one.prompt not in heldout)


def question(star: Star, source: random.Random) -> Question:
    centre, *others = source.sample(NAMES[: star.names], star.nodes)
    step = star.length - 1
    arms = [centre + "".join(others[i : i + step]) for i in range(0, len(others), step)]
    edges = ["".join(edge) for arm in arms for edge in pairwise(arm)]
    source.shuffle(edges)
    return Question(f"{'|'.join(edges)};{centre}{arms[0][-1]}=", tuple(arms))

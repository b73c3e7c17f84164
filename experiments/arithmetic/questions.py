"""Expressions in F_p[X]/(X^k) as lines of bytes: the question, pause bytes, `=`, and the coefficients of the result.

    (-30215@(12000+66006))_____=31246    p = 7, k = 5

An element is its k coefficients, a digit each, the constant first.  `-` stands before its operand; `+`, `*` and `@`
(composition: f@g is f(g(X))) between their two, in brackets.  `_` is a pause byte.

Source: Gloeckle et al. 2024 (arXiv 2404.19737), section 4.2.

Try:  python -c "from experiments.arithmetic.questions import *; print(*questions(Ring(7, 5), 3, (1, 2), 0, 0))"
"""

import random
from collections.abc import Iterator, Sequence, Set
from dataclasses import dataclass

from experiments.arithmetic.ring import OPERATIONS, Element, Ring

NEGATION, PAUSE = "-", "_"
OPERATORS = (NEGATION, *OPERATIONS)


@dataclass(frozen=True)
class Question:
    expression: str
    prompt: str
    """the expression, pause bytes and ="""
    answer: str
    operator: str
    """that is applied last"""


def questions(ring: Ring, count: int, operations: Sequence[int], pause: int, seed: int) -> Iterator[Question]:
    """The same ones for the same seed; how many operations each has is drawn from `operations`.

    Expressions do not depend on `pause`.
    """
    source = random.Random(seed)
    return (question(ring, source, source.choice(operations), pause) for _ in range(count))


def unheard(
    ring: Ring, count: int, operations: Sequence[int], pause: int, seed: int, heldout: Set[str]
) -> Iterator[str]:
    """Texts to train on: `questions` with their answers, without those whose expression is in `heldout`."""
    every = questions(ring, count, operations, pause, seed)
    return (one.prompt + one.answer for one in every if one.expression not in heldout)


def question(ring: Ring, source: random.Random, operations: int, pause: int) -> Question:
    text, value, operator = expression(ring, source, operations)
    return Question(text, text + pause * PAUSE + "=", digits(value), operator)


def expression(ring: Ring, source: random.Random, operations: int) -> tuple[str, Element, str]:
    """Text, value and last operator.

    Each operator is as likely as the others; of one with two operands the rest of the operations goes to the left and
    to the right, every split being as likely.  Without operations it is an element, whose operator is empty.
    """
    if operations == 0:
        element = tuple(source.choices(range(ring.prime), k=ring.powers))
        return digits(element), element, ""
    operator = source.choice(OPERATORS)
    if operator == NEGATION:
        text, value, _ = expression(ring, source, operations - 1)
        return NEGATION + text, ring.negated(value), operator
    split = source.randrange(operations)
    left, a, _ = expression(ring, source, split)
    right, b, _ = expression(ring, source, operations - 1 - split)
    return f"({left}{operator}{right})", OPERATIONS[operator](ring, a, b), operator


def digits(element: Element) -> str:
    return "".join(map(str, element))

"""F7[X]/(X^5): polynomials with coefficients modulo 7, in which X^5 and all higher powers are 0.

An element is its five coefficients, the constant first: (3, 1, 0, 0, 0) is 3 + X.

Try:  python -c "from experiments.arithmetic.ring import *; print(composed((0, 0, 1, 0, 0), (3, 1, 0, 0, 0)))"
"""

from collections.abc import Callable

PRIME, POWERS = 7, 5
Element = tuple[int, ...]


def negated(a: Element) -> Element:
    return tuple(-x % PRIME for x in a)


def added(a: Element, b: Element) -> Element:
    return tuple((x + y) % PRIME for x, y in zip(a, b, strict=True))


def multiplied(a: Element, b: Element) -> Element:
    return tuple(sum(a[i] * b[power - i] for i in range(power + 1)) % PRIME for power in range(POWERS))


def composed(a: Element, b: Element) -> Element:
    """a(b(X)), by Horner's rule; `a` stands for its polynomial of degree 4 or less, since b may have a constant."""
    result: Element = (0,) * POWERS
    for coefficient in reversed(a):
        result = added(multiplied(result, b), (coefficient, *[0] * (POWERS - 1)))
    return result


OPERATIONS: dict[str, Callable[[Element, Element], Element]] = {"+": added, "*": multiplied, "@": composed}
"""Of two operands, by the byte that stands between them; negation is a - in front of one."""

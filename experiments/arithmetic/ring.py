"""F_p[X]/(X^k): polynomials with coefficients modulo a prime p, in which X^k and all higher powers are 0.

An element is its k coefficients, the constant first: (3, 1, 0, 0, 0) is 3 + X in F7[X]/(X^5).

Try:  python -c "from experiments.arithmetic.ring import *; print(Ring(7, 4).composed((0, 0, 1, 0), (3, 1, 0, 0)))"
"""

from collections.abc import Callable
from dataclasses import dataclass

Element = tuple[int, ...]


@dataclass(frozen=True)
class Ring:
    prime: int
    """p, below 10, so that a coefficient is one digit"""
    powers: int
    """k"""

    def negated(self, a: Element) -> Element:
        return tuple(-x % self.prime for x in a)

    def added(self, a: Element, b: Element) -> Element:
        return tuple((x + y) % self.prime for x, y in zip(a, b, strict=True))

    def multiplied(self, a: Element, b: Element) -> Element:
        return tuple(sum(a[i] * b[power - i] for i in range(power + 1)) % self.prime for power in range(self.powers))

    def composed(self, a: Element, b: Element) -> Element:
        """a(b(X)), by Horner's rule; `a` stands for its polynomial of degree below k, since b may have a constant."""
        result: Element = (0,) * self.powers
        for coefficient in reversed(a):
            result = self.added(self.multiplied(result, b), (coefficient, *[0] * (self.powers - 1)))
        return result


OPERATIONS: dict[str, Callable[[Ring, Element, Element], Element]] = {
    "+": Ring.added,
    "*": Ring.multiplied,
    "@": Ring.composed,
}
"""Of two operands, by the byte that stands between them; negation is a - in front of one."""

"""Whether the arguments of a public function are of the right kind: UserError says what is allowed, in one line.

A command line has tyro for that; a program has nobody, and a wrong argument would be found deep inside, or never.

    @checked({"count": whole(1), "mode": choice("fast", "slow")})
    def work(count: int, mode: str = "fast", **options: Any) -> None: ...

Try:  python -c "from bytemtp.common.checks import whole; whole(0)('max_bytes', -1)"
"""

import difflib
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import wraps
from inspect import Parameter, signature
from numbers import Integral, Real
from typing import Any, ParamSpec, TypeVar

from bytemtp.common.errors import UserError

P = ParamSpec("P")
T = TypeVar("T")
Check = Callable[[str, Any], Any]
"""Of an argument's name and value: the value in the type that the function names, or UserError if it will not do."""
SHOWN = 60
"""Characters of a value in a message, at most."""


def checked(checks: Mapping[str, Check]) -> Callable[[Callable[P, T]], Callable[P, T]]:
    """Decorator: look at the arguments that `checks` names before the function is called.

    If it takes further keywords (**options), they must be named there, too.
    """

    def of(function: Callable[P, T]) -> Callable[P, T]:
        known = signature(function)

        @wraps(function)
        def call(*args: P.args, **kwargs: P.kwargs) -> T:
            given = known.bind(*args, **kwargs)
            for name, value in given.arguments.items():
                if known.parameters[name].kind is Parameter.VAR_KEYWORD:
                    for option in value:
                        check_known(option, checks, f"argument {option!r} of {function.__name__}()")
                    given.arguments[name] = {option: checks[option](option, one) for option, one in value.items()}
                elif name in checks:
                    given.arguments[name] = checks[name](name, value)
            return function(*given.args, **given.kwargs)

        return call

    return of


def check_known(name: str, known: Iterable[str], what: str, otherwise: str = "") -> None:
    """UserError for a name that is not known, with the nearest one, else what to do `otherwise`, else all of them."""
    if name not in (names := list(known)):
        near = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]!r}?" if near else otherwise or f"choose from {', '.join(names)}"
        raise UserError(f"unknown {what}; {hint}")


def whole(least: int | None = None, most: int | None = None) -> Check:
    """A whole number, from `least` to `most` where they are given; numpy's are as good as Python's."""

    def check(name: str, value: Any) -> int:
        if isinstance(value, bool) or not isinstance(value, Integral):
            raise wrong(name, value, "a whole number")
        if least is not None and value < least:
            raise UserError(f"{name} is {value}; it must be {least} or more")
        if most is not None and int(value) > most:
            raise UserError(f"{name} is {value}; it must be {most} or less")
        return int(value)

    return check


def real(name: str, value: Any) -> float:
    """A number."""
    if isinstance(value, bool) or not isinstance(value, Real):
        raise wrong(name, value, "a number")
    try:
        return float(value)
    except OverflowError:
        return math.inf


def share(name: str, value: Any) -> float:
    """A number from 0 to 1."""
    if not 0 <= real(name, value) <= 1:
        raise UserError(f"{name} is {value}; it must be from 0 to 1")
    return float(value)


def optional(check: Check) -> Check:
    """What `check` takes, or None."""
    return lambda name, value: None if value is None else check(name, value)


def choice(*allowed: str) -> Check:
    """One of some names."""

    def check(name: str, value: Any) -> str:
        if not isinstance(value, str) or value not in allowed:
            raise UserError(f"{name} is {shown(value)}; choose from {', '.join(allowed)}")
        return value

    return check


def instance(kind: type[T], what: str) -> Callable[[str, Any], T]:
    """An object of a class."""

    def check(name: str, value: Any) -> T:
        if not isinstance(value, kind):
            raise wrong(name, value, what)
        return value

    return check


def octets(name: str, value: Any) -> bytes:
    """A byte string, not a text."""
    if not isinstance(value, bytes | bytearray):
        raise wrong(name, value, "bytes, such as text.encode()" if isinstance(value, str) else "bytes")
    return bytes(value)


def octets_list(name: str, value: Any) -> list[bytes]:
    """A list of byte strings, not a single one."""
    if isinstance(value, str | bytes | bytearray) or not isinstance(value, Sequence):
        raise wrong(name, value, "a list of bytes, such as [b'one']")
    return [octets(f"{name}[{number}]", one) for number, one in enumerate(value)]


def texts(name: str, value: Any) -> tuple[str, ...]:
    """A list of texts, not a single one."""
    if isinstance(value, str) or not isinstance(value, Sequence) or not all(isinstance(one, str) for one in value):
        raise wrong(name, value, "a list of texts, such as ['one']")
    return tuple(value)


def numbers(name: str, value: Any) -> tuple[float, ...]:
    """A list of numbers, not a single one."""
    if isinstance(value, str) or not isinstance(value, Sequence):
        raise wrong(name, value, "a list of numbers, such as [1, 2.5]")
    return tuple(real(f"{name}[{number}]", one) for number, one in enumerate(value))


def wrong(name: str, value: Any, what: str) -> UserError:
    """The error for an argument of another kind."""
    return UserError(f"{name} is {shown(value)}, of type {type(value).__name__}; it must be {what}")


def shown(value: Any) -> str:
    """A value as one short line."""
    text = " ".join(repr(value).split())
    return text if len(text) <= SHOWN else text[: SHOWN - 3] + "..."

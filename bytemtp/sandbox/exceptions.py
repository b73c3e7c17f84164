"""Exceptions of a program, in its tests: they travel as names and plain values, and become the nearest class known.

Used on both sides of the sandbox, so it imports the standard library only.
"""

import builtins
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

from bytemtp.sandbox.wire import Decoder, Encoder

Known = Callable[[str, str], Any]
"""Gives the class that a module and a name stand for, or something else if there is none."""


GROUP: Any = getattr(builtins, "BaseExceptionGroup", ())
"""Python 3.10 has none."""


class Escaped(BaseException):
    """The program raised what is no Exception, as SystemExit: its name, then its arguments."""


def described(error: BaseException, above: Sequence[BaseException] = ()) -> list[Any]:
    """An exception as its classes, nearest first, its name, arguments, attributes, cause, and members of a group.

    above: those whose cause or member it is.  A cause that is among them is left out: it would have no end.
    """
    above = [*above, error]
    kinds = [[kind.__module__, kind.__name__] for kind in type(error).__mro__ if kind is not object]
    arguments = error.args
    if isinstance(error, OSError) and error.filename is not None:
        arguments = (error.errno, error.strerror, error.filename)
    try:
        values = Encoder().form(arguments)
    except (TypeError, ValueError, RecursionError):
        values = Encoder().form((str(error),))
    ends = any(error.__cause__ is one for one in above)
    cause = None if error.__cause__ is None or ends else described(error.__cause__, above)
    members = None
    if isinstance(error, GROUP):
        values, members = Encoder().form((error.message,)), [described(member, above) for member in error.exceptions]
    return [kinds, type(error).__name__, values, Encoder().form(plain_of(vars(error))), cause, members]


def plain_of(attributes: dict[str, Any]) -> dict[str, Any]:
    """Those that can travel."""
    plain = {}
    for name, value in attributes.items():
        with suppress(TypeError, ValueError, RecursionError):
            Encoder().form(value)
            plain[name] = value
    return plain


def builtin_class(module: str, name: str) -> Any:
    return getattr(builtins, name, None) if module == "builtins" else None


def rebuilt(
    known: Known, kinds: list[list[str]], name: str, arguments: Any, state: Any, cause: Any, members: Any
) -> BaseException:
    """The nearest exception of those known.  One that would steer the tests, instead of failing them, becomes another.

    Takes what `described` gave, or something malformed: raises one of `wire.MALFORMED` then.
    """
    given = tuple(Decoder().value(arguments))
    if members is not None:
        given = (*given, [rebuilt(known, *member) for member in members])
    error = nearest(known, kinds, name, given)
    error.__dict__.update(dict(Decoder().value(state)))
    if cause is not None:
        error.__cause__ = rebuilt(known, *cause)
    return error


def nearest(known: Known, kinds: list[list[str]], name: str, arguments: tuple[Any, ...]) -> BaseException:
    for kind in (known(*names) for names in kinds):
        if not (isinstance(kind, type) and issubclass(kind, BaseException)):
            continue
        if not issubclass(kind, Exception):
            break
        if issubclass(kind, StopIteration | StopAsyncIteration):
            return RuntimeError(name, *arguments)
        try:
            return made(kind, arguments)
        except TypeError:
            continue  # as UnicodeDecodeError, whose arguments have to fit
    return Escaped(name, *arguments)


def made(kind: type[Exception], arguments: tuple[Any, ...]) -> Exception:
    if kind.__module__ == "builtins":
        return kind(*arguments)
    error = kind.__new__(kind)  # its `__init__` may take others
    error.args = arguments
    return error

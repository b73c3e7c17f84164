"""Calls of a program's functions, by name: the tests call (`Program`), the program's process answers (`answer_calls`).

Arguments and results travel as plain values, and so do exceptions.  Containers among the arguments that the program
changes in place are changed in the tests, too.  What is no plain value, as a generator or a function, does not travel.
Used on both sides of the sandbox, so it imports the standard library only.

    request     [name, form of [arguments, keywords]]
    answer      ["return", [[number of a container, its new form], ...], form of the result]
                ["raise", *description of an exception], ["no plain value", what was returned]
"""

import sys
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from threading import Lock
from typing import Any, Literal

from bytemtp.sandbox.exceptions import Known, builtin_class, described, rebuilt
from bytemtp.sandbox.wire import MOST_BYTES, Channel, Decoder, Encoder, Gone, NotPlain, from_bytes, to_bytes

DEEPEST = 5000
"""Limit of recursion while a value is read or written: it leaves nests of 1500 lists."""


StayedBy = Literal["tests", "program"]


class CannotTravel(BaseException):
    """The tests and the program would have to share what is no plain value.  It ends the tests, which fail."""


class Program:
    """The program under test, as its tests use it.

    gone, cannot_travel: what has ended the tests, kept in case that they swallow it; of the latter, the first.
    stayed_by: whose value it was that cannot travel.
    ended: it is a script that has written all that it will.
    known: the exceptions that it may raise in the tests.
    """

    def __init__(self, channel: Channel) -> None:
        self.channel = channel
        self.gone: Gone | None = None
        self.cannot_travel: CannotTravel | None = None
        self.stayed_by: StayedBy | None = None
        self.ended = False
        self.known: Known = builtin_class
        self._lock = Lock()  # tests may call from several threads

    def wait_until_loaded(self) -> None:
        """Raises what the program raised while it was loaded."""
        self._answer("", ())

    def call(self, name: str, arguments: Sequence[Any], keywords: dict[str, Any]) -> Any:
        """What the program's function of this name returns or raises.  CannotTravel, Gone; ValueError for too much."""
        encoder = Encoder()
        try:
            with deep_recursion():
                data = to_bytes([name, encoder.form([list(arguments), keywords])])
        except NotPlain as error:
            by: StayedBy = "program" if isinstance(error.value, BaseException) else "tests"  # which it may have raised
            raise self.stays(f"{name} was given {error}", by) from None
        with self._lock:
            try:
                self.channel.send_packed(data)
                return self._answer(name, encoder.shared)
            except Gone as gone:
                self.gone = gone
                raise

    def stays(self, what: str, by: StayedBy = "tests") -> CannotTravel:
        if self.cannot_travel is None:
            self.cannot_travel, self.stayed_by = CannotTravel(f"TypeError: {what}"), by
        return self.cannot_travel

    def _answer(self, name: str, shared: Sequence[Any]) -> Any:
        with deep_recursion():
            result, error = self.channel.read(lambda data: self._understood(from_bytes(data), name, shared))
        if error is not None:
            raise error
        return result

    def _understood(self, message: Any, name: str, shared: Sequence[Any]) -> tuple[Any, BaseException | None]:
        """The result and the exception of an answer.  One of `wire.MALFORMED` if it is none."""
        match message:
            case ["return", changed, result]:
                return returned(shared, changed, result), None
            case ["raise", *description]:
                return None, rebuilt(self.known, *description)
            case ["no plain value", str(what)]:
                return None, self.stays(f"{name} returned {what}", by="program")
        raise ValueError("of no known kind")


class Function:
    """A function of the program, or a method of its class Solution, in the tests: it can be called, and has a name."""

    def __init__(self, program: Program, name: str) -> None:
        self.__name__ = self.__qualname__ = name
        self._program = program

    def __call__(self, *arguments: Any, **keywords: Any) -> Any:
        return self._program.call(self.__name__, arguments, keywords)

    def __getattr__(self, name: str) -> Any:
        """What else it has stays in the program.  Names with underscores are tried by libraries, which can do without;
        not so `inspect.signature`."""
        if name.startswith("_") and name != "__signature__":
            raise AttributeError(name)
        raise self._program.stays(f"{self.__name__}.{name} is out of the tests' reach")


def returned(shared: Sequence[Any], changed: list[Any], result: Any) -> Any:
    """A result, after the containers have been changed."""
    decoder = Decoder(shared)
    for number, form in changed:
        refill(shared[number], decoder.content(form))
    return decoder.value(result)


def refill(old: Any, new: Any) -> None:
    """Make a container equal to another of its type, in place."""
    if type(old) is not type(new):
        raise TypeError(f"a {type(old).__name__} became a {type(new).__name__}")
    if isinstance(old, list | bytearray):
        old[:] = new
        return
    old.clear()
    if isinstance(old, deque):
        old.extend(new)
    else:
        old.update(new)


def answer_calls(channel: Channel, named: Callable[[str], Callable[..., Any]]) -> None:
    """Call the functions that `named` gives as the other side asks for.  Ends by Gone, when that has closed."""
    while True:
        with deep_recursion():
            name, arguments, keywords, shared = channel.read(request)
        try:
            before = contents(Encoder(shared))
            data = reply_of(before, shared, named(name)(*arguments, **keywords))
        except Gone:  # of a program that has found the class: its end
            raise
        except NotPlain as error:
            data = to_bytes(["no plain value", str(error)])
        except BaseException as error:  # noqa: BLE001 - a program may raise anything
            data = to_bytes(["raise", *described(error)])
        channel.send_packed(data)


def request(data: bytes) -> tuple[str, list[Any], dict[str, Any], list[Any]]:
    """Name, arguments, keywords, and the containers among these."""
    decoder = Decoder()
    name, form = from_bytes(data)
    arguments, keywords = decoder.value(form)
    return name, arguments, keywords, decoder.shared


def contents(encoder: Encoder) -> list[Any]:
    with deep_recursion():
        return [encoder.content(value) for value in list(encoder.shared)]


def reply_of(before: list[Any], shared: Sequence[Any], result: Any) -> bytes:
    encoder = Encoder(shared)
    after = contents(encoder)
    with deep_recursion():
        # As they are sent: 1, 1.0 and True are equal, but not the same.
        changed = [[i, form] for i, form in enumerate(after) if to_bytes(form) != to_bytes(before[i])]
        data = to_bytes(["return", changed, encoder.form(result)])
    if len(data) > MOST_BYTES:
        raise ValueError(f"a result of {len(data)} bytes is longer than {MOST_BYTES}")
    return data


@contextmanager
def deep_recursion() -> Iterator[None]:
    """While a value is read or written.  RecursionError has one text, however deep we are ourselves."""
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(max(limit, DEEPEST))
    try:
        yield
    except RecursionError:
        raise RecursionError("maximum recursion depth exceeded") from None
    finally:
        sys.setrecursionlimit(limit)

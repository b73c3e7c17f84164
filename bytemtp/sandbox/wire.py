"""Messages between processes that do not trust each other: plain values as JSON, never pickles.

A value arrives as an exact builtin (or standard-library container) type, whatever it was sent as: a subclass of int
with an `__eq__` of its own arrives as the int.  One list in two places arrives as one list.  What has no plain form,
as a function, an iterator or an object, does not travel (`NotPlain`).
Used on both sides of the sandbox, so it imports the standard library only.

Try:  python -c "from bytemtp.sandbox.wire import *; print(unpack(pack({1: (2.5, {3})})))"
"""

import builtins
import json
import socket
from collections import Counter, OrderedDict, defaultdict, deque, namedtuple
from collections.abc import Callable, Iterator, Sequence
from datetime import date, datetime, time, timedelta, timezone
from decimal import Decimal
from fractions import Fraction
from itertools import chain
from pathlib import PosixPath
from typing import Any

MOST_BYTES = 1 << 25
"""Longest message; a longer one is refused by both ends."""
JSON_INT = 1 << 63
"""Larger integers travel in base 16: their decimal form takes quadratic time, and Python limits it."""

JSON = json.JSONEncoder(ensure_ascii=False, check_circular=False, separators=(",", ":"))
MALFORMED = (ValueError, TypeError, LookupError, ArithmeticError, AttributeError, RecursionError, MemoryError)
"""What decoding bytes of a hostile sender can raise."""


class Gone(BaseException):
    """Nothing more comes from the other side: it has closed the channel, or sent what is no message (`broken`)."""

    def __init__(self, reason: str, *, broken: bool = False) -> None:
        super().__init__(reason)
        self.broken = broken


class NotPlain(TypeError):
    """A value that has no plain form; the message says of which type it is."""

    def __init__(self, value: Any) -> None:
        kind = type(value).__name__
        super().__init__(f"{'an' if kind[:1] in 'AEIOUaeiou' else 'a'} {kind}, which is no plain value")
        self.value = value


class Channel:
    """Length-prefixed messages over a stream socket."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock

    def send(self, message: Any) -> None:
        """A plain value.  ValueError if the message is too long."""
        self.send_packed(pack(message))

    def send_packed(self, data: bytes) -> None:
        if len(data) > MOST_BYTES:
            raise ValueError(f"a message of {len(data)} bytes is longer than {MOST_BYTES}")
        try:
            self.sock.sendall(len(data).to_bytes(4, "little") + data)
        except OSError as error:
            raise Gone(str(error)) from None

    def receive(self) -> Any:
        """The next message, a plain value.  Gone if there is none."""
        return self.read(unpack)

    def read(self, reader: Callable[[bytes], Any]) -> Any:
        """The next message as `reader` reads it.  Gone if there is none, or the reader finds that it is malformed."""
        size = int.from_bytes(self._exactly(4), "little")
        if size > MOST_BYTES:
            raise Gone(f"a message of {size} bytes", broken=True)
        data = self._exactly(size)
        try:
            return reader(data)
        except MALFORMED as error:
            raise Gone(f"not a message: {error}", broken=True) from None

    def _exactly(self, size: int) -> bytes:
        data = bytearray()
        while len(data) < size:
            try:
                piece = self.sock.recv(min(size - len(data), 1 << 20))
            except OSError as error:
                raise Gone(str(error)) from None
            if not piece:
                raise Gone("closed")
            data += piece
        return bytes(data)


def pack(value: Any) -> bytes:
    return to_bytes(Encoder().form(value))


def unpack(data: bytes) -> Any:
    return Decoder().value(from_bytes(data))


def to_bytes(form: Any) -> bytes:
    """Lone surrogates stay what they are."""
    return JSON.encode(form).encode("utf-8", "surrogatepass")


def from_bytes(data: bytes) -> Any:
    return json.loads(data.decode("utf-8", "surrogatepass"))


class Encoder:
    """Makes JSON's types of values: None, bool, float, str and short int as they are, others as [tag, ...].

    NotPlain for a value of any other type.
    shared: the mutable containers that the other side knows already, by number; those of a message join them, each
    after what it contains, as the `Decoder` makes them.
    """

    def __init__(self, shared: Sequence[Any] = ()) -> None:
        self.shared = list(shared)  # kept, so that no other object gets one's id
        self._numbers = {id(value): number for number, value in enumerate(self.shared)}

    def form(self, value: Any) -> Any:
        kind = type(value)
        if kind in PLAIN:
            return value
        if kind is int:
            return value if -JSON_INT < value < JSON_INT else ["int", hex(value)]
        if kind not in FORMS:
            return self._other(value)
        if kind not in MUTABLE:
            return self.content(value)
        if id(value) in self._numbers:
            return ["same", self._numbers[id(value)]]
        form = self.content(value)
        self._numbers[id(value)] = len(self.shared)
        self.shared.append(value)
        return form

    def content(self, value: Any) -> list[Any]:
        """The [tag, ...] of a value of FORMS, whether it is known already or not."""
        tag, flat = FORMS[type(value)]
        items = list(flat(value))
        kinds = set(map(type, items))
        if kinds <= PLAIN or (kinds == {int} and min(items) > -JSON_INT and max(items) < JSON_INT):
            return [tag, *items]
        return [tag, *[self.form(item) for item in items]]

    def _other(self, value: Any) -> Any:
        """A builtin by its name, a subclass as its base, a number of numpy as one of Python."""
        name = getattr(value, "__name__", None)
        if isinstance(name, str) and NAMED.get(name) is value:
            return ["named", name]
        if isinstance(value, tuple) and hasattr(value, "_fields"):
            return ["namedtuple", type(value).__name__, self.form(list(value._fields)), self.form(list(value))]
        if type(value).__module__ == "numpy" and getattr(value, "shape", None) == ():
            item = value.item()
            if type(item) in (bool, int, float, complex, str):
                return self.form(item)
        for base in BASES:
            if isinstance(value, base):
                return self.form(base(value))
        raise NotPlain(value)


class Decoder:
    """Gives the values of the forms that an `Encoder` made.  One of MALFORMED if they are none."""

    def __init__(self, shared: Sequence[Any] = ()) -> None:
        self.shared = list(shared)

    def value(self, form: Any) -> Any:
        if type(form) is not list:
            if type(form) is dict:
                raise TypeError("an object")  # an encoder writes none
            return form
        if form[0] == "same":
            return self.shared[form[1]]
        if form[0] not in MAKERS:
            raise TypeError(f"unknown tag {form[0]!r}")
        value = self.content(form)
        if type(value) in MUTABLE:
            self.shared.append(value)
        return value

    def content(self, form: Any) -> Any:
        """The value of a form with a tag of MAKERS, which does not join those shared."""
        tag, *items = form
        if not {list, dict}.isdisjoint(map(type, items)):
            items = [self.value(item) for item in items]
        return MAKERS[tag](items)


def _pairs(mapping: dict[Any, Any]) -> Iterator[Any]:
    return chain.from_iterable(dict.items(mapping))


def _paired(flat: list[Any]) -> list[tuple[Any, Any]]:
    return list(zip(flat[::2], flat[1::2], strict=True))


def _moment(value: Any) -> list[Any]:
    """A date, a time or both: its numbers; a time with an offset from UTC has it in place of its zone."""
    names = ("year", "month", "day", "hour", "minute", "second", "microsecond")
    numbers = [getattr(value, name) for name in names if hasattr(value, name)]
    return numbers if type(value) is date else [*numbers, value.utcoffset(), value.fold]


def _with_zone(kind: Any) -> Callable[[list[Any]], Any]:
    def made(items: list[Any]) -> Any:
        *numbers, offset, fold = items
        return kind(*numbers, None if offset is None else timezone(offset), fold=fold)

    return made


FORMS: dict[type, tuple[str, Callable[[Any], Any]]] = {
    list: ("list", iter),
    tuple: ("tuple", iter),
    set: ("set", iter),
    frozenset: ("frozenset", iter),
    deque: ("deque", lambda value: [value.maxlen, *value]),
    dict: ("dict", _pairs),
    defaultdict: ("defaultdict", lambda value: [value.default_factory, *_pairs(value)]),
    Counter: ("Counter", _pairs),
    OrderedDict: ("OrderedDict", _pairs),
    type({}.keys()): ("keys", iter),
    type({}.values()): ("values", iter),
    type({}.items()): ("items", lambda items: chain.from_iterable(items)),
    bytes: ("bytes", lambda value: [value.hex()]),
    bytearray: ("bytearray", lambda value: [value.hex()]),
    complex: ("complex", lambda value: [value.real, value.imag]),
    range: ("range", lambda value: [value.start, value.stop, value.step]),
    Decimal: ("Decimal", lambda value: [str(value)]),
    Fraction: ("Fraction", lambda value: [value.numerator, value.denominator]),
    date: ("date", _moment),
    time: ("time", _moment),
    datetime: ("datetime", _moment),
    timedelta: ("timedelta", lambda value: [value.days, value.seconds, value.microseconds]),
    PosixPath: ("path", lambda value: [str(value)]),
}
"""Exact type -> tag and flat content."""

MAKERS: dict[str, Callable[[list[Any]], Any]] = {
    "int": lambda items: int(items[0], 16),
    "list": list,
    "tuple": tuple,
    "set": set,
    "frozenset": frozenset,
    "deque": lambda items: deque(items[1:], items[0]),
    "dict": lambda items: dict(_paired(items)),
    "defaultdict": lambda items: defaultdict(items[0], _paired(items[1:])),
    "Counter": lambda items: Counter(dict(_paired(items))),
    "OrderedDict": lambda items: OrderedDict(_paired(items)),
    "keys": lambda items: dict.fromkeys(items).keys(),
    "values": lambda items: dict(enumerate(items)).values(),
    "items": lambda items: dict(_paired(items)).items(),
    "bytes": lambda items: bytes.fromhex(items[0]),
    "bytearray": lambda items: bytearray.fromhex(items[0]),
    "complex": lambda items: complex(*items),
    "range": lambda items: range(*items),
    "Decimal": lambda items: Decimal(items[0]),
    "Fraction": lambda items: Fraction(*items),
    "date": lambda items: date(*items),
    "time": _with_zone(time),
    "datetime": _with_zone(datetime),
    "timedelta": lambda items: timedelta(*items),
    "path": lambda items: PosixPath(items[0]),
    "namedtuple": lambda items: namedtuple(items[0], items[1])(*items[2]),
    "named": lambda items: NAMED[items[0]],
}
"""Tag -> value of its content."""

PLAIN = {bool, str, float, type(None)}
MUTABLE = {list, set, deque, dict, defaultdict, Counter, OrderedDict, bytearray}

BASES: tuple[Any, ...] = (int, float, str, bytes, list, tuple, dict, set, frozenset)
"""A subclass of these travels as the base."""

NAMED: dict[str, Any] = {kind.__name__: kind for kind in FORMS} | {
    name: value
    for name, value in {**vars(builtins), "NoneType": type(None)}.items()
    if isinstance(value, type) or name in ("len", "abs", "max", "min", "sum", "sorted", "repr", "ord", "chr")
}
"""Types, and builtins that tests pass as arguments."""

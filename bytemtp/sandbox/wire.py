"""Messages between processes that do not trust each other: plain values as JSON, never pickles.

A value arrives as an exact builtin (or standard-library container) type, whatever it was sent as: a subclass of int
with an `__eq__` of its own arrives as the int.  What has no plain form arrives as `Opaque`, of no use.
Used on both sides of the sandbox, so it imports the standard library only.

Try:  python -c "from bytemtp.sandbox.wire import *; print(unpack(pack({1: (2.5, {3})})))"
"""

import builtins
import json
import socket
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable, Iterator
from decimal import Decimal
from fractions import Fraction
from itertools import chain, islice
from typing import Any

MOST_BYTES = 1 << 24
"""Longest message; a longer one is refused by both ends."""
MOST_ITEMS = 100_000
"""So many items of an iterator are sent."""
JSON_INT = 1 << 63
"""Larger integers travel in base 16: their decimal form takes quadratic time, and Python limits it."""

JSON = json.JSONEncoder(ensure_ascii=False, check_circular=False)
MALFORMED = (ValueError, TypeError, LookupError, ArithmeticError, AttributeError, RecursionError, MemoryError)
"""What decoding bytes of a hostile sender can raise."""


class Gone(BaseException):
    """Nothing more comes from the other side: it has closed the channel, or sent what is no message (`broken`)."""

    def __init__(self, reason: str, *, broken: bool = False) -> None:
        super().__init__(reason)
        self.broken = broken


class Opaque:
    """Stands for an object that cannot travel.  Whatever a test asks of it fails the test."""

    def __init__(self, kind: str) -> None:
        self.__dict__["kind"] = kind

    def _refuse(self, *_: object) -> Any:
        raise TypeError(f"the function returned a {self.__dict__['kind']}, which is no plain value")

    __bool__ = __eq__ = __hash__ = __len__ = __iter__ = __getattr__ = __call__ = __getitem__ = _refuse


class Channel:
    """Length-prefixed messages over a stream socket."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock

    def send(self, message: Any, unknown: Callable[[Any], Any] | None = None) -> None:
        """ValueError if the message is too long; `unknown` as in `encode`."""
        self.send_packed(pack(message, unknown))

    def send_packed(self, data: bytes) -> None:
        if len(data) > MOST_BYTES:
            raise ValueError(f"a message of {len(data)} bytes is longer than {MOST_BYTES}")
        try:
            self.sock.sendall(len(data).to_bytes(4, "little") + data)
        except OSError as error:
            raise Gone(str(error)) from None

    def receive(self, known: Callable[[str, Any], Any] | None = None) -> Any:
        """The next message.  Gone if there is none; `known` as in `decode`."""
        size = int.from_bytes(self._exactly(4), "little")
        if size > MOST_BYTES:
            raise Gone(f"a message of {size} bytes", broken=True)
        data = self._exactly(size)
        try:
            return unpack(data, known)
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


def pack(value: Any, unknown: Callable[[Any], Any] | None = None) -> bytes:
    """Lone surrogates stay what they are."""
    return JSON.encode(encode(value, unknown)).encode("utf-8", "surrogatepass")


def unpack(data: bytes, known: Callable[[str, Any], Any] | None = None) -> Any:
    return decode(json.loads(data.decode("utf-8", "surrogatepass")), known)


def encode(value: Any, unknown: Callable[[Any], Any] | None = None) -> Any:
    """A value as JSON's types: None, bool, float, str and short int as they are, others as [tag, ...].

    unknown: gives the [tag, ...] of a value of any other type.  TypeError for one without it.
    """
    kind = type(value)
    if kind in (bool, str, float) or value is None:
        return value
    if kind is int:
        return value if -JSON_INT < value < JSON_INT else ["int", hex(value)]
    form = FORMS.get(kind)
    if form is not None:
        tag, flat = form
        return [tag, *(encode(item, unknown) for item in flat(value))]
    return _encode_other(value, unknown)


def _encode_other(value: Any, unknown: Callable[[Any], Any] | None) -> Any:
    """A subclass as its base, a builtin by its name, an iterator as its items, else what `unknown` makes of it."""
    name = getattr(value, "__name__", None)
    if isinstance(name, str) and NAMED.get(name) is value:
        return ["named", name]
    for base in BASES:
        if isinstance(value, base):
            return encode(base(value), unknown)
    if isinstance(value, Iterator):
        return ["iterator", *(encode(item, unknown) for item in islice(value, MOST_ITEMS))]
    if unknown is None:
        raise TypeError(f"{type(value).__name__} is no plain value")
    return unknown(value)


def decode(form: Any, known: Callable[[str, Any], Any] | None = None) -> Any:
    """The value that `encode` gave this form; `known(tag, content)` reads what its `unknown` wrote."""
    if type(form) is not list:
        if type(form) is dict:
            raise TypeError("an object")  # encode writes none
        return form
    tag, *content = form
    if tag in MAKERS:
        return MAKERS[tag]([decode(item, known) for item in content])
    if known is None:
        raise TypeError(f"unknown tag {tag!r}")
    return known(tag, content)


def _pairs(mapping: dict[Any, Any]) -> Iterator[Any]:
    return chain.from_iterable(dict.items(mapping))


def _paired(flat: list[Any]) -> list[tuple[Any, Any]]:
    return list(zip(flat[::2], flat[1::2], strict=True))


FORMS: dict[type, tuple[str, Callable[[Any], Any]]] = {
    list: ("list", iter),
    tuple: ("tuple", iter),
    set: ("set", iter),
    frozenset: ("frozenset", iter),
    deque: ("deque", iter),
    dict: ("dict", _pairs),
    defaultdict: ("dict", _pairs),
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
}
"""Exact type -> tag and flat content."""

MAKERS: dict[str, Callable[[list[Any]], Any]] = {
    "int": lambda items: int(items[0], 16),
    "list": list,
    "tuple": tuple,
    "set": set,
    "frozenset": frozenset,
    "deque": deque,
    "iterator": iter,
    "dict": lambda items: dict(_paired(items)),
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
    "named": lambda items: NAMED[items[0]],
}
"""Tag -> value of its content."""

BASES: tuple[Any, ...] = (int, float, str, bytes, list, tuple, dict, set, frozenset)
"""A subclass of these travels as the base."""

NAMED: dict[str, Any] = {
    name: getattr(builtins, name)
    for name in (*(base.__name__ for base in BASES), "bool", "complex", "object", "len", "abs", "max", "min", "sum")
}
"""Builtins that tests pass as arguments."""

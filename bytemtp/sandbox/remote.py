"""Objects that cannot travel, as functions and iterators: they stay where they are, and a proxy stands for them.

A `Peer` calls what is at the other end of a channel and, while it waits for the answer, answers calls from there: the
program can be handed a function of the tests.  Whoever hands an object over says by `operations` what may be done
to it.  Used on both sides of the sandbox, so it imports the standard library only.
"""

import builtins
import sys
import types
from _thread import RLock
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from typing import Any

from bytemtp.sandbox.wire import MALFORMED, MOST_BYTES, Channel, Decoder, Encoder, Gone, from_bytes, to_bytes

DEEPEST = 5000
"""Limit of recursion while a value is read or written: it leaves nests of 1500 lists."""
AHEAD = 16
"""An iterator is asked for one item more in advance for each so many that have been taken: one at first, so that
what it does between them is seen."""
MOST_ITEMS = 4096


class Escaped(BaseException):
    """The other side raised what is no Exception, as SystemExit."""


class Remote:
    """Stands for an object of the other side."""

    _peer: "Peer"
    _number: int | str
    _kind: str

    def __init__(self, peer: "Peer", number: int | str, kind: str) -> None:
        self.__dict__.update(_peer=peer, _number=number, _kind=kind)


class Callback(Remote):
    """A function of the tests, in the program: it can be called, no more."""

    def __call__(self, *arguments: Any, **keywords: Any) -> Any:
        return self._peer.call("call", self, *arguments, **keywords)


class Object(Remote):
    """An object of the program, in the tests.  What it answers arrives as a plain value.

    Comparing it would show the program what is expected and let it decide, so that fails the tests.
    """

    def _refuse(self, *_: object) -> Any:
        raise TypeError(f"the function returned a {self._kind}, which cannot be compared")

    __eq__ = __ne__ = _refuse
    __hash__ = object.__hash__

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_") and name not in ("__name__", "__qualname__"):
            raise AttributeError(name)
        return self._peer.call("get", self, name)

    def __setattr__(self, name: str, value: Any) -> None:
        self._peer.call("set", self, name, value)

    def __getitem__(self, key: Any) -> Any:
        return self._peer.call("item", self, key)

    def __setitem__(self, key: Any, value: Any) -> None:
        self._peer.call("put", self, key, value)

    def __len__(self) -> Any:
        return self._peer.call("len", self)

    def __bool__(self) -> Any:
        return self._peer.call("bool", self)

    def __iter__(self) -> Any:
        return self._peer.call("iter", self)

    def __str__(self) -> Any:
        return self._peer.call("str", self)

    def __repr__(self) -> Any:
        return self._peer.call("repr", self)

    def __enter__(self) -> Any:
        return self._peer.call("enter", self)

    def __exit__(self, *_: object) -> None:
        """The program does not see, and cannot swallow, what the tests raise."""
        self._peer.call("exit", self)


class Function(Object, Callback):
    """A function or class of the program, in the tests."""


def items_of(peer: "Peer", iterator: Remote) -> Iterator[Any]:
    """A generator for an iterator of the other side."""
    taken, sent = 0, None
    while True:
        items, ended, value = peer.call("next", iterator, 1 + taken // AHEAD, sent)
        for item in items:
            sent = yield item
        taken += len(items)
        if ended:
            return value


async def awaited(peer: "Peer", coroutine: Remote) -> Any:
    return peer.call("await", coroutine)


class Peer:
    """One end of a channel, from which objects of the other end are used.

    operations: name -> what the other side may do with an object that it was given, or calls by its name.
    proxies: what stands for its "object" and its "function".
    """

    def __init__(
        self, channel: Channel, operations: dict[str, Callable[..., Any]], proxies: dict[str, type[Remote]]
    ) -> None:
        self.channel, self._operations, self._proxies = channel, operations, proxies
        self.gone: Gone | None = None
        self._deep = DeepRecursion()
        self._lock = RLock()  # a program may call from several threads; whoever holds it has the channel
        self._mine: list[Any] = []
        self._numbers: dict[int, int] = {}
        self._theirs: dict[int, Any] = {}

    def named(self, name: str) -> Any:
        """What the other side calls by this name."""
        raise LookupError(name)

    def exception(self, module: str, name: str) -> Any:
        """The class that stands for an exception of the other side, or something else if there is none."""
        return getattr(builtins, name, None) if module == "builtins" else None

    def call(self, operation: str, remote: Remote, /, *arguments: Any, **keywords: Any) -> Any:
        """Use an object of the other side.  Arguments that it changes are changed here; what it raises is raised."""
        encoder = Encoder(self._unknown)
        with self._deep:
            data = to_bytes(["call", operation, remote._number, encoder.form([list(arguments), keywords])])
        with self._lock:
            self._send(data)
            return self._reply(encoder.shared)

    def _send(self, data: bytes) -> None:
        """Gone, which is kept, if nobody receives it."""
        try:
            self.channel.send_packed(data)
        except Gone as gone:
            self.gone = gone
            raise

    def reply(self) -> Any:
        """What the other side says without having been called."""
        with self._lock:
            return self._reply(())

    def _reply(self, shared: Sequence[Any]) -> Any:
        """The answer to a call with these containers.  Calls that come before it are answered."""
        while True:
            message = self._receive()
            match message:
                case ["call", operation, target, form]:
                    self._answer(operation, target, form)
                case ["return", changed, result]:
                    return self._read(self._returned, shared, changed, result)
                case ["raise", *description]:
                    raise self._read(self._rebuilt, *description)
                case _:
                    raise self._broken("of no known kind")

    def serve(self) -> None:
        """Answer calls.  Gone when the channel has closed."""
        with self._lock:
            while True:
                match self._receive():
                    case ["call", operation, target, form]:
                        self._answer(operation, target, form)
                    case _:
                        raise self._broken("no call")

    def _receive(self) -> Any:
        try:
            with self._deep:
                return self.channel.read(from_bytes)
        except Gone as gone:
            self.gone = gone
            raise

    def _read(self, reader: Callable[..., Any], *content: Any) -> Any:
        """What a reader makes of forms; Gone if they are malformed."""
        try:
            with self._deep:
                return reader(*content)
        except MALFORMED as error:
            raise self._broken(str(error)) from None

    def _broken(self, what: str) -> Gone:
        self.gone = Gone(f"not a message: {what}", broken=True)
        return self.gone

    def _answer(self, operation: str, target: int | str, form: Any) -> None:
        """Do what the other side asks for, and send the result and the containers changed, or what was raised."""
        decoder = Decoder(self._known)
        arguments, keywords = self._read(decoder.value, form)
        try:
            before = self._contents(decoder.shared)
            result = self._performed(operation, target, arguments, keywords)
            data = self._result(before, decoder.shared, result)
        except Gone:
            raise
        except BaseException as error:  # noqa: BLE001 - a program may raise anything
            data = to_bytes(["raise", *described(error)])
        self._send(data)

    def _performed(self, operation: str, target: int | str, arguments: list[Any], keywords: dict[str, Any]) -> Any:
        self._lock.release()  # it may wait for threads that call the other side
        try:
            return self._operations[operation](self._object(target), *arguments, **keywords)
        finally:
            self._lock.acquire()

    def _contents(self, shared: Sequence[Any]) -> list[Any]:
        encoder = Encoder(self._unknown, shared)
        with self._deep:
            return [encoder.content(value) for value in shared]

    def _result(self, before: list[Any], shared: Sequence[Any], result: Any) -> bytes:
        encoder = Encoder(self._unknown, shared)
        with self._deep:
            after = [encoder.content(value) for value in shared]
            changed = [[i, after[i]] for i in range(len(after)) if after[i] != before[i]]
            data = to_bytes(["return", changed, encoder.form(result)])
        if len(data) > MOST_BYTES:
            raise ValueError(f"a result of {len(data)} bytes is longer than {MOST_BYTES}")
        return data

    def _returned(self, shared: Sequence[Any], changed: list[Any], result: Any) -> Any:
        """A result, after the containers have been changed."""
        decoder = Decoder(self._known, shared)
        for number, form in changed:
            refill(shared[number], decoder.content(form))
        return decoder.value(result)

    def _object(self, target: int | str) -> Any:
        return self.named(target) if isinstance(target, str) else self._mine[target]

    def _unknown(self, value: Any) -> Any:
        """The form of what cannot travel."""
        if isinstance(value, Remote):
            return ["yours", value._number]
        if id(value) not in self._numbers:
            self._numbers[id(value)] = len(self._mine)
            self._mine.append(value)
        return ["mine", self._numbers[id(value)], sort_of(value), type(value).__name__, getattr(value, "__name__", "")]

    def _known(self, tag: str, content: list[Any]) -> Any:
        if tag == "yours":
            return self._object(content[0])
        number, sort, kind, name = content
        if tag != "mine" or not all(isinstance(text, str) for text in (sort, kind, name)):
            raise TypeError(f"unknown tag {tag!r}")
        if number not in self._theirs:
            self._theirs[number] = self._proxy(int(number), sort, kind, name)
        return self._theirs[number]

    def _proxy(self, number: int, sort: str, kind: str, name: str) -> Any:
        if sort == "iterator":
            return items_of(self, Remote(self, number, kind))
        if sort == "coroutine":
            return awaited(self, Remote(self, number, kind))
        proxy = self._proxies[sort](self, number, kind)
        if name:
            proxy.__dict__["__name__"] = name
        return proxy

    def _rebuilt(self, kinds: list[list[str]], name: str, arguments: Any, state: Any, cause: Any) -> BaseException:
        """The nearest exception of those known.  One that would steer the tests, instead of failing them, becomes
        another."""
        values, attributes = tuple(unpacked(arguments)), dict(unpacked(state))
        error = self._nearest(kinds, name, values)
        error.__dict__.update(attributes)
        if cause is not None:
            error.__cause__ = self._rebuilt(*cause)
        return error

    def _nearest(self, kinds: list[list[str]], name: str, arguments: tuple[Any, ...]) -> BaseException:
        for kind in (self.exception(*names) for names in kinds):
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


def unpacked(form: Any) -> Any:
    return Decoder().value(form)


def made(kind: type[Exception], arguments: tuple[Any, ...]) -> Exception:
    if kind.__module__ == "builtins":
        return kind(*arguments)
    error = kind.__new__(kind)  # its `__init__` may take others
    error.args = arguments
    return error


def described(error: BaseException) -> list[Any]:
    """An exception as its classes, nearest first, its name, arguments, attributes and cause."""
    kinds = [[kind.__module__, kind.__name__] for kind in type(error).__mro__ if kind is not object]
    arguments = error.args
    if isinstance(error, OSError) and error.filename is not None:
        arguments = (error.errno, error.strerror, error.filename)
    try:
        values = Encoder().form(arguments)
    except (TypeError, ValueError, RecursionError):
        values = Encoder().form((str(error),))
    cause = None if error.__cause__ is None else described(error.__cause__)
    return [kinds, type(error).__name__, values, Encoder().form(plain_of(vars(error))), cause]


def plain_of(attributes: dict[str, Any]) -> dict[str, Any]:
    """Those that can travel."""
    plain = {}
    for name, value in attributes.items():
        with suppress(TypeError, ValueError, RecursionError):
            Encoder().form(value)
            plain[name] = value
    return plain


def sort_of(value: Any) -> str:
    if isinstance(value, Iterator):
        return "iterator"
    if isinstance(value, types.CoroutineType):
        return "coroutine"
    return "function" if callable(value) else "object"


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


LATE: dict[int, Exception] = {}
"""What an iterator raised while items were taken in advance, by its id."""


def pull(iterator: Any, count: int, sent: Any) -> tuple[list[Any], bool, Any]:
    """The next items of an iterator, whether it has ended, and what it returned then."""
    if id(iterator) in LATE:
        raise LATE.pop(id(iterator))
    items: list[Any] = []
    count = min(count, MOST_ITEMS)  # whatever the other side asks for
    try:
        if sent is not None:
            items.append(iterator.send(sent))
        while len(items) < count:
            items.append(next(iterator))
    except StopIteration as stop:
        return items, True, stop.value
    except Exception as error:
        if not items:
            raise
        LATE[id(iterator)] = error
    return items, False, None


class DeepRecursion:
    """While a value is read or written."""

    def __init__(self) -> None:
        self._limits: list[int] = []

    def __enter__(self) -> None:
        self._limits.append(sys.getrecursionlimit())
        sys.setrecursionlimit(max(self._limits[-1], DEEPEST))

    def __exit__(self, *_: object) -> None:
        sys.setrecursionlimit(self._limits.pop())

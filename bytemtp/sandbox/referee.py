"""The side of a sandbox that has the tests.  It calls the program's functions by messages and says how the tests went.

The program can answer a call with any plain value, which is all that a function can do; it never sees what the answer
is compared with.
"""

import builtins
import select
import socket
import traceback
from typing import Any

from bytemtp.sandbox.wire import Channel, Gone, Opaque

LONGEST = 300
"""Characters of a message in a verdict."""
MOST_OUTPUT = 1 << 24
"""Bytes of output of a script that are read."""
CLOSE = 1e-5
"""Numbers in a script's output may differ by this much, relatively or (a thousandth of it) absolutely, as in APPS."""


class Failure(Exception):
    """Ends the tests; the message is the verdict's result."""


class Escaped(BaseException):
    """The program raised what is no Exception, as SystemExit."""


def run(program: Channel, host: Channel) -> None:
    """Read a job from the host, judge the program, and tell the host: {"passed", "result", "ended"}.

    ended: it was a script that has written all that it will; how it ends is left for the host to see.
    """
    job = host.receive()
    stub = Program(program)
    result = "passed"
    try:
        program.send({"script": job["kind"] == "script", "source": job["source"]})
        KINDS[job["kind"]](stub, job)
    except Gone as gone:
        stub.gone = gone
    except Failure as failure:
        result = str(failure)
    except BaseException as error:  # noqa: BLE001 - tests may raise anything
        result = described(error, job)
    if stub.gone:  # also if the tests have swallowed it
        result = f"failed: {stub.gone}" if stub.gone.broken else "crashed"
    host.send({"passed": result == "passed", "result": result, "ended": stub.ended})


class Program:
    """The program under test, at the other end of a channel."""

    def __init__(self, channel: Channel) -> None:
        self.channel = channel
        self.gone: Gone | None = None
        self.ended = False

    def call(self, target: str | int, arguments: list[Any], keywords: dict[str, Any]) -> Any:
        """Call one of its functions.  Arguments that it changes are changed here; what it raises is raised here."""
        self.channel.send(["call", target, arguments, keywords], self._unknown)
        result, changed = self.reply()
        if changed is not None:
            refill(arguments, changed[0])
            refill(keywords, changed[1])
        return result

    def reply(self) -> tuple[Any, Any]:
        """What it returned, and the arguments if they have changed; the first reply is about its top level."""
        try:
            match self.channel.receive(self._known):
                case ["return", result, changed]:
                    return result, changed
                case ["raise", list(kinds), tuple(arguments), str(name)]:
                    error = rebuilt(kinds, arguments, name)
                case _:
                    raise Gone("not a reply", broken=True)
        except Gone as gone:
            self.gone = gone
            raise
        raise error

    def _known(self, tag: str, content: list[Any]) -> Any:
        if tag == "function":
            return Function(self, content[0])
        return Opaque(str(content[0]))

    def _unknown(self, value: Any) -> Any:
        if isinstance(value, Function):
            return ["function", value.target]
        raise Failure(f"failed: the tests pass a {type(value).__name__}, which is no plain value")


class Function:
    """Stands for a function of the program, by name, or by number for one that it has returned."""

    def __init__(self, program: Program, target: str | int) -> None:
        self.program, self.target = program, target

    def __call__(self, *arguments: Any, **keywords: Any) -> Any:
        return self.program.call(self.target, list(arguments), keywords)


def refill(old: Any, new: Any) -> None:
    """Make a container equal to another of its type, in place, and so the containers inside it."""
    if isinstance(old, list):
        kept = [merged(item, new[i]) if i < len(new) else None for i, item in enumerate(old)]
        old[:] = [*kept[: len(new)], *new[len(kept) :]]
    elif isinstance(old, dict):
        kept_items = {key: merged(old[key], value) if key in old else value for key, value in new.items()}
        old.clear()
        old.update(kept_items)
    else:
        old.clear()
        old.update(new)


def merged(old: Any, new: Any) -> Any:
    """`new`, but as the same object where that is possible."""
    if type(old) is tuple and type(new) is tuple and len(old) == len(new):
        for inner_old, inner_new in zip(old, new, strict=True):
            merged(inner_old, inner_new)
        return old if old == new else new
    if type(old) is not type(new) or not isinstance(old, list | dict | set):
        return new
    refill(old, new)
    return old


def rebuilt(kinds: list[str], arguments: tuple[Any, ...], name: str) -> BaseException:
    """The nearest builtin exception.  One that would steer the tests, instead of failing them, becomes another."""
    for kind in (getattr(builtins, str(kind), None) for kind in kinds):
        if not (isinstance(kind, type) and issubclass(kind, BaseException)):
            continue
        if not issubclass(kind, Exception):
            return Escaped(name, *arguments)
        if issubclass(kind, StopIteration | StopAsyncIteration):
            return RuntimeError(name, *arguments)
        try:
            return kind(*arguments)
        except TypeError:
            continue  # as UnicodeDecodeError, whose arguments have to fit
    return Escaped(name, *arguments)


def described(error: BaseException, job: dict[str, Any]) -> str:
    """The result in a verdict: one line."""
    if isinstance(error, MemoryError):
        return "memory"
    name, text = type(error).__name__, str(error)
    if isinstance(error, Escaped):
        name, *rest = error.args
        text = " ".join(map(str, rest))
    if isinstance(error, AssertionError) and not text:
        text = failing_line(error, job.get("program", ""))
    line = " ".join(f"failed: {name}: {text}".split()).rstrip(":")
    return line if len(line) <= LONGEST else line[: LONGEST - 3] + "..."


def failing_line(error: BaseException, program: str) -> str:
    numbers = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == "<tests>"]
    lines = program.splitlines()
    return lines[numbers[-1] - 1].strip() if numbers and numbers[-1] and numbers[-1] <= len(lines) else ""


def run_tests(program: Program, job: dict[str, Any]) -> None:
    """Run test code whose names in job["remote"] are the program's functions."""
    names: dict[str, Any] = {"__name__": "tests"}
    exec(compile(job["prelude"], "<prelude>", "exec", dont_inherit=True), names)
    tests = compile(job["program"], "<tests>", "exec", dont_inherit=True)
    names |= {name: Function(program, name) for name in job["remote"]}
    program.reply()
    exec(tests, names)


def run_together(program: Program, job: dict[str, Any]) -> None:
    """The tests are part of the source: they have passed when it has run.  Forgeable, so verdicts of it are marked."""
    program.reply()


def run_calls(program: Program, job: dict[str, Any]) -> None:
    """Compare results with expected ones.  As in APPS, a tuple counts as a list, and a list of one result as it."""
    program.reply()
    for arguments, expected in zip(job["inputs"], job["outputs"], strict=True):
        shown = ", ".join(map(repr, arguments))
        result = listed(program.call(job["function"], arguments, {}))
        if result != expected and not (type(expected) is list and expected and result == expected[0]):
            text = f"failed: {job['function']}({shown}) returned {result!r}, not {expected!r}"
            raise Failure(text if len(text) <= LONGEST else text[: LONGEST - 3] + "...")


def listed(value: Any) -> Any:
    return [listed(item) for item in value] if type(value) in (list, tuple) else value


def run_script(program: Program, job: dict[str, Any]) -> None:
    """Feed a script's standard input and compare what it writes."""
    written = conversation(program.channel, job["stdin"].encode("utf-8", "surrogatepass"))
    program.ended = True
    if not same_output(written.decode("utf-8", "replace"), job["stdout"]):
        raise Failure("failed: wrong output")


def conversation(channel: Channel, stdin: bytes) -> bytes:
    """Write and read at the same time, until the script ends."""
    sock, total = channel.sock, 0
    pieces: list[bytes] = []
    left: memoryview | None = memoryview(stdin)
    while True:
        readable, writable, _ = select.select([sock], [sock] if left is not None else [], [])
        if writable and left is not None:
            left = write_some(sock, left)
        if not readable:
            continue
        if not (piece := read_some(sock)):
            return b"".join(pieces)
        pieces.append(piece)
        total += len(piece)
        if total > MOST_OUTPUT:
            raise Failure(f"failed: more than {MOST_OUTPUT} bytes of output")


def write_some(sock: socket.socket, left: memoryview) -> memoryview | None:
    """What is left to write then; None when all is written or nobody reads any more."""
    try:
        if left:
            return left[sock.send(left[: 1 << 16], socket.MSG_DONTWAIT) :]
        sock.shutdown(socket.SHUT_WR)
    except BlockingIOError:
        return left
    except OSError:
        pass  # it may end without reading all
    return None


def read_some(sock: socket.socket) -> bytes:
    try:
        return sock.recv(1 << 16)
    except ConnectionResetError:  # it ended without reading all
        return b""


def same_output(written: str, expected: str) -> bool:
    """Line by line, white space at the ends and blank lines at the end aside; numbers may differ by rounding."""
    ours, theirs = (text.rstrip().splitlines() for text in (written, expected))
    return len(ours) == len(theirs) and all(map(same_line, ours, theirs))


def same_line(written: str, expected: str) -> bool:
    ours, theirs = written.split(), expected.split()
    return len(ours) == len(theirs) and all(a == b or close(a, b) for a, b in zip(ours, theirs, strict=True))


def close(written: str, expected: str) -> bool:
    try:
        a, b = float(written), float(expected)
    except ValueError:
        return False
    return abs(a - b) <= CLOSE / 1000 + CLOSE * abs(b)


KINDS = {"tests": run_tests, "together": run_together, "calls": run_calls, "script": run_script}

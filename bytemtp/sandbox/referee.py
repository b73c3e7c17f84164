"""The side of a sandbox that has the tests.  It calls the program's functions by messages and says how the tests went.

The program can answer a call with any plain value, which is all that a function can do; it never sees what the answer
is compared with.
"""

import math
import random
import select
import socket
import sys
import traceback
from typing import Any

from bytemtp.sandbox.calls import Function, Program
from bytemtp.sandbox.exceptions import Escaped, Known, builtin_class
from bytemtp.sandbox.wire import Channel, Gone

LONGEST = 300
"""Characters of a message in a verdict."""
MOST_OUTPUT = 1 << 24
"""Bytes of output of a script that are read."""
CLOSE = 1e-5
"""Fractions in a script's output may differ by this much, relatively or (a thousandth of it) absolutely, as in APPS."""


class Failure(Exception):
    """Ends the tests; the message is the verdict's result."""


def run(program: Channel, host: Channel) -> None:
    """Read a job from the host, judge the program, and tell the host: {"passed", "result", "ended", "cannot_travel"}.

    ended: it was a script that has written all that it will; how it ends is left for the host to see.
    cannot_travel: program and tests would have had to share what is no plain value.
    """
    job = host.receive()
    stub = Program(program)
    passed, result = False, ""
    try:
        program.send({"script": job["kind"] == "script", "source": job["source"], "imports": job.get("imports", "")})
        KINDS[job["kind"]](stub, job)
        passed, result = True, "passed"
    except Gone as gone:
        stub.gone = gone
    except Failure as failure:
        result = str(failure)
    except BaseException as error:  # noqa: BLE001 - tests may raise anything
        result = described(error, job)
    if stub.cannot_travel:  # also if the tests have swallowed it
        passed, result = False, one_line(f"failed: {stub.cannot_travel}")
    if stub.gone:
        passed, result = False, f"failed: {stub.gone}" if stub.gone.broken else "crashed"
    flags = {"ended": stub.ended, "cannot_travel": stub.cannot_travel is not None}
    host.send({"passed": passed, "result": result, **flags})


def exceptions_of(tests: str, classes: dict[str, Any]) -> Known:
    """Those that a program may raise in its tests: builtin ones, those of the problem (`classes`), and of the standard
    library those that the tests name; others, as unittest.SkipTest, could steer them."""

    def known(module: str, name: str) -> Any:
        if module == "program":
            return classes.get(name)
        if module == "builtins" or module.startswith("bytemtp") or name not in tests:
            return builtin_class(module, name)
        return getattr(sys.modules.get(module), name, None)

    return known


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
    return one_line(f"failed: {name}: {text}")


def one_line(text: str) -> str:
    line = " ".join(text.split()).rstrip(":")
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
    classes = {name: value for name, value in names.items() if isinstance(value, type)}
    program.known = exceptions_of(job["program"], classes)
    names |= {name: Function(program, name) for name in job["remote"]}
    program.wait_until_loaded()
    if "seed" in job["program"]:
        share_seed(program)
    exec(tests, names)


def share_seed(program: Program) -> None:
    """Random numbers of the program, too, begin anew where the tests say so."""
    own, theirs = random.seed, Function(program, "random.seed")

    def seed(*arguments: Any, **keywords: Any) -> None:
        own(*arguments, **keywords)
        theirs(*arguments, **keywords)

    random.seed = seed


def run_together(program: Program, job: dict[str, Any]) -> None:
    """The tests are part of the source: they have passed when it has run.  Forgeable, so verdicts of it are marked."""
    program.wait_until_loaded()


def run_calls(program: Program, job: dict[str, Any]) -> None:
    """Compare results with expected ones.  As in APPS, a tuple counts as a list, and one result as a list of it."""
    program.wait_until_loaded()
    function = Function(program, job["function"])
    for arguments, expected in zip(job["inputs"], job["outputs"], strict=True):
        shown = ", ".join(map(repr, arguments))
        result = listed(function(*arguments))
        if result != expected and not (type(expected) is list and expected == [result]):
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
    """Whether two numbers are nearly the same; whole ones and infinite ones have to be the same."""
    try:
        a, b = float(written), float(expected)
    except ValueError:
        return False
    whole = all(text.lstrip("+-").isdigit() for text in (written, expected))
    return math.isfinite(a) and math.isfinite(b) and not whole and abs(a - b) <= CLOSE / 1000 + CLOSE * abs(b)


KINDS = {"tests": run_tests, "together": run_together, "calls": run_calls, "script": run_script}

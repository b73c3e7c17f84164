"""The side of a sandbox that has the tests.  It calls the program's functions by messages and says how the tests went.

The program can answer a call with any plain value, which is all that a function can do; it never sees what the answer
is compared with.
"""

import math
import os
import random
import re
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
"""Fractions in an output may differ by this much, relatively or (a thousandth of it) absolutely, as in APPS."""

NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?", re.ASCII | re.IGNORECASE)
"""Of those that `float` reads: no underscores, no digits of other scripts."""


class Failure(Exception):
    """Ends the tests; the message is the verdict's result."""


def run(program: Channel, host: Channel) -> None:
    """Read a job from the host, judge the program, and tell the host: {"passed", "result", "ended", "cannot_travel"}.

    ended: it was a script that has written all that it will; how it ends is left for the host to see.
    cannot_travel: whose value it was, if program and tests would have had to share what is no plain value; else None.
    """
    job = host.receive()
    stub = Program(program)
    passed, result = False, ""
    try:
        program.send({name: job.get(name) for name in ("source", "imports", "stdin")})
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
        passed, result = False, one_line(f"failed: {stub.gone}") if stub.gone.broken else "crashed"
    flags = {"ended": stub.ended, "cannot_travel": stub.stayed_by}
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
    for given, expected in zip(job["inputs"], job["outputs"], strict=True):
        arguments = given if type(given) is list else [given]
        call = f"{job['function']}({', '.join(map(repr, arguments))})"
        result = function(*arguments)
        if type(result) is range and type(expected) is list:
            result = list(result[: len(expected) + 1])
        result = listed(result)
        if not (alike(result, expected) or (type(expected) is list and alike([result], expected))):
            text = f"failed: {call} returned {result!r}, not {expected!r}"
            raise Failure(text if len(text) <= LONGEST else text[: LONGEST - 3] + "...")


def listed(value: Any) -> Any:
    return [listed(item) for item in value] if type(value) in (list, tuple) else value


def alike(result: Any, expected: Any) -> bool:
    """Equal, but for the rounding of fractions, also in lists."""
    if type(result) is list and type(expected) is list:
        return len(result) == len(expected) and all(map(alike, result, expected))
    if float in (type(result), type(expected)) and {type(result), type(expected)} <= {int, float}:
        return bool(result == expected or near(result, expected))
    return bool(result == expected)


def run_script(program: Program, job: dict[str, Any]) -> None:
    """Compare what a script writes with what is expected."""
    _, descriptors, _, _ = socket.recv_fds(program.channel.sock, 1, 1)
    if not descriptors:
        raise Gone("closed")
    written = all_of(descriptors[0])
    program.ended = True
    if not same_output(written.decode("utf-8", "replace"), job["stdout"]):
        raise Failure("failed: wrong output")


def all_of(pipe: int) -> bytes:
    """What is written to a pipe, until nobody can write to it any more."""
    written = bytearray()
    while piece := os.read(pipe, 1 << 16):
        written += piece
        if len(written) > MOST_OUTPUT:
            raise Failure(f"failed: more than {MOST_OUTPUT} bytes of output")
    return bytes(written)


def same_output(written: str, expected: str) -> bool:
    """Line by line, white space at the ends and blank lines at the end aside; runs of it inside a line count as one.
    Numbers may differ by rounding."""
    ours, theirs = (text.rstrip().splitlines() for text in (written, expected))
    return len(ours) == len(theirs) and all(map(same_line, ours, theirs))


def same_line(written: str, expected: str) -> bool:
    ours, theirs = written.split(), expected.split()
    return len(ours) == len(theirs) and all(a == b or close(a, b) for a, b in zip(ours, theirs, strict=True))


def close(written: str, expected: str) -> bool:
    """Whether two numbers are nearly the same; whole ones and infinite ones have to be the same."""
    if not (NUMBER.fullmatch(written) and NUMBER.fullmatch(expected)):
        return False
    whole = all(text.lstrip("+-").isdigit() for text in (written, expected))
    return not whole and near(float(written), float(expected))


def near(a: float, b: float) -> bool:
    try:
        return math.isfinite(a) and math.isfinite(b) and abs(a - b) <= CLOSE / 1000 + CLOSE * abs(b)
    except OverflowError:  # an int that no float comes near to
        return False


KINDS = {"tests": run_tests, "together": run_together, "calls": run_calls, "script": run_script}

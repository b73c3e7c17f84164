"""The side of a sandbox that runs a program.  Its process and those before it have never seen a test.

Functions: the program is loaded as a module, then its functions are called with the arguments that arrive.
Scripts: the program runs as `__main__`, and the channel is its standard input and output.
"""

import builtins
import os
import sys
import types
from collections.abc import Callable
from typing import Any

from bytemtp.sandbox.wire import Channel, Gone, encode, pack

MODULE = "program"
OUT_OF_MEMORY = 101
"""Exit status of a script that ended by a MemoryError."""


def run(channel: Channel) -> int:
    """Serve one job; the exit status."""
    try:
        job = channel.receive()
        if job["script"]:
            return run_script(channel, job["source"])
        serve(channel, job["source"])
    except Gone:
        os._exit(0)
    return 0


def run_script(channel: Channel, source: str) -> int:
    """The exit status of a script, but for what `sys.exit` says, which is left to the interpreter."""
    os.dup2(channel.sock.fileno(), 0)
    os.dup2(channel.sock.fileno(), 1)
    channel.sock.close()
    try:
        load(source, "__main__")
    except MemoryError:
        return OUT_OF_MEMORY
    except Exception:  # noqa: BLE001 - whatever a program raises is its end
        return 1
    return 0


def load(source: str, name: str) -> dict[str, Any]:
    """Run a program as the module `name`; its names."""
    module = types.ModuleType(name)
    sys.modules[name] = module
    exec(compile(source, f"<{name}>", "exec", dont_inherit=True), module.__dict__)
    return module.__dict__


def serve(channel: Channel, source: str) -> None:
    """Load a program and answer calls, until the channel closes."""
    try:
        names = load(source, MODULE)
    except BaseException as error:  # noqa: BLE001 - a program may raise anything
        channel.send(raised(error))
        return
    channel.send(["return", None, None])
    functions: list[Callable[..., Any]] = []
    while True:
        _, target, arguments, keywords = channel.receive(lambda _, content: find(names, functions, content[0]))
        channel.send_packed(answer(names, functions, target, arguments, keywords))


def answer(names: dict[str, Any], functions: list[Any], target: Any, arguments: list[Any], keywords: Any) -> bytes:
    """The packed reply to a call: result and, where they have changed, arguments; or what was raised."""

    def handle(value: Any) -> Any:
        if not isinstance(value, types.FunctionType | types.LambdaType | types.MethodType):
            return ["opaque", type(value).__name__]
        functions.append(value)
        return ["function", len(functions) - 1]

    try:
        before = encode([arguments, keywords], handle)
        result = find(names, functions, target)(*arguments, **keywords)
        after = encode([arguments, keywords], handle)
        return pack(["return", result, None if after == before else [arguments, keywords]], handle)
    except BaseException as error:  # noqa: BLE001 - a program may raise anything
        return pack(raised(error), handle)


def find(names: dict[str, Any], functions: list[Any], target: Any) -> Any:
    """A function of the program, a method of its class Solution, or one that it has returned before."""
    if isinstance(target, int):
        return functions[target]
    if target not in names and "Solution" in names:
        return getattr(names["Solution"](), target)
    if target not in names:
        raise NameError(f"name {target!r} is not defined")
    return names[target]


def raised(error: BaseException) -> list[Any]:
    """An exception as the names of its builtin classes, nearest first, and its arguments."""
    kinds = [kind.__name__ for kind in type(error).__mro__ if getattr(builtins, kind.__name__, None) is kind]
    try:
        pack(error.args)
        arguments = error.args
    except (TypeError, ValueError, RecursionError):
        arguments = (str(error),)
    return ["raise", kinds, arguments, type(error).__name__]

"""The side of a sandbox that runs a program.  Its process and those before it have never seen a test.

Functions: the program is loaded as a module, then its functions are called with the arguments that arrive.
Scripts: the program runs as `__main__`, and the channel is its standard input and output.
"""

import ast
import mmap
import os
import random
import sys
import types
from collections.abc import Callable
from functools import partial
from typing import Any

from bytemtp.sandbox.calls import answer_calls
from bytemtp.sandbox.exceptions import described
from bytemtp.sandbox.wire import Channel, Gone, to_bytes

MODULE = "program"
OUT_OF_MEMORY = 101
"""Exit status of a script that ended by a MemoryError."""


def run(channel: Channel) -> int:
    """Serve one job; the exit status."""
    try:
        job = channel.receive()
        if job["script"]:
            return run_script(channel, job)
        serve(channel, job)
    except Gone:
        os._exit(0)
    return 0


class Mapping(mmap.mmap):
    """As mmap, but shared memory without a file has one: it is refused otherwise (`lockdown.py`)."""

    def __new__(
        cls, fileno: int, length: int, flags: int = mmap.MAP_SHARED, *arguments: Any, **keywords: Any
    ) -> "Mapping":
        if fileno != -1 or not flags & mmap.MAP_SHARED:
            return super().__new__(cls, fileno, length, flags, *arguments, **keywords)
        file = os.open("/dev/shm", os.O_RDWR | os.O_TMPFILE, 0o600)
        try:
            os.ftruncate(file, length)
            return super().__new__(cls, file, length, flags & ~mmap.MAP_ANONYMOUS, *arguments, **keywords)
        finally:
            os.close(file)


def run_script(channel: Channel, job: dict[str, Any]) -> int:
    """The exit status of a script, but for what `sys.exit` says, which is left to the interpreter."""
    os.dup2(channel.sock.fileno(), 0)
    os.dup2(channel.sock.fileno(), 1)
    channel.sock.close()
    try:
        load(job, "__main__")
    except MemoryError:
        return OUT_OF_MEMORY
    except Exception:  # noqa: BLE001 - whatever a program raises is its end
        return 1
    return 0


def load(job: dict[str, Any], name: str) -> dict[str, Any]:
    """Run a program as the module `name`, after the imports that it may count on; its names."""
    module = types.ModuleType(name)
    sys.modules[name] = module
    exec(job["imports"], module.__dict__)
    exec(compiled(job["source"], f"<{name}>", returns=job["script"]), module.__dict__)
    return module.__dict__


def compiled(source: str, file: str, *, returns: bool) -> types.CodeType:
    """The code of a program.  `returns`: it may end by a `return` outside of functions, and is made one if it does."""
    try:
        return compile(source, file, "exec", dont_inherit=True)
    except SyntaxError as error:
        if not (returns and error.msg == "'return' outside function"):
            raise
    tree = ast.parse(source)
    imports = next(i for i, node in enumerate(tree.body) if not isinstance(node, ast.Import | ast.ImportFrom))
    whole = ast.parse("def script():\n    pass\nscript()")
    assert isinstance(whole.body[0], ast.FunctionDef)
    whole.body[0].body = tree.body[imports:]
    whole.body[:0] = tree.body[:imports]
    return compile(whole, file, "exec", dont_inherit=True)


def serve(channel: Channel, job: dict[str, Any]) -> None:
    """Load a program and answer calls, until the channel closes."""
    try:
        names = load(job, MODULE)
    except BaseException as error:  # noqa: BLE001 - a program may raise anything
        channel.send_packed(to_bytes(["raise", *described(error)]))
        return
    channel.send_packed(to_bytes(["return", [], None]))
    answer_calls(channel, partial(function_of, names))


def function_of(names: dict[str, Any], name: str) -> Callable[..., Any]:
    """A function of the program, or a method of its class Solution; or `random.seed`, which tests may call, too."""

    def method(*arguments: Any, **keywords: Any) -> Any:
        return getattr(names["Solution"](), name)(*arguments, **keywords)

    if name in names:
        function: Callable[..., Any] = names[name]
        return function
    if name == "random.seed":
        return random.seed
    if "Solution" in names:
        return method
    raise NameError(f"name {name!r} is not defined")

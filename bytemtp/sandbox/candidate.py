"""The side of a sandbox that runs a program.  Its process and those before it have never seen a test.

Functions: the program is loaded as a module, then its functions are called with the arguments that arrive.
Scripts: the program runs as `__main__`, its standard input a file, its standard output a pipe to the other side.
"""

import ast
import builtins
import io
import mmap
import os
import random
import socket
import sys
import types
from collections.abc import Callable
from functools import partial
from typing import Any, Literal

from bytemtp.sandbox.calls import answer_calls
from bytemtp.sandbox.exceptions import described
from bytemtp.sandbox.wire import Channel, Gone, to_bytes

MODULE = "program"
SCRIPT = "solution.py"
STDIN, STDOUT = "/dev/shm/.stdin", "/dev/shm/.stdout"
OUT_OF_MEMORY = 101
"""Exit status of a script that ended by a MemoryError."""


def run(channel: Channel, streams: str) -> tuple[types.CodeType, dict[str, Any]]:
    """Serve one job.  Returns for a script only, what `script` gives.

    streams: folder for the files of its standard input and output.
    """
    try:
        job = channel.receive()
        if job["stdin"] is not None:
            return script(channel, job, streams)
        serve(channel, job)
    except Gone:
        os._exit(0)
    sys.exit()  # as a program ends: threads are joined, buffers written


class Mapping(mmap.mmap):
    """As mmap, but shared memory without a file has one: it is refused otherwise (`lockdown.py`)."""

    def __new__(cls, fileno: int, length: int, *arguments: Any, **keywords: Any) -> "Mapping":
        given = dict(zip(("flags", "prot", "access", "offset"), arguments, strict=False)) | keywords
        shared = given.get("flags", mmap.MAP_SHARED) & mmap.MAP_SHARED and given.get("access") != mmap.ACCESS_COPY
        if fileno != -1 or not shared:
            return super().__new__(cls, fileno, length, *arguments, **keywords)
        if "flags" in given:
            given["flags"] &= ~mmap.MAP_ANONYMOUS
        file = os.open("/dev/shm", os.O_RDWR | os.O_TMPFILE, 0o600)
        try:
            os.ftruncate(file, length)
            return super().__new__(cls, file, length, **given)
        finally:
            os.close(file)


def script(channel: Channel, job: dict[str, Any], streams: str) -> tuple[types.CodeType, dict[str, Any]]:
    """The code of a script and the names of its module, after all is as in `python3 solution.py < input`."""
    sys.excepthook = show
    try:
        redirect(channel, job["stdin"].encode("utf-8", "surrogatepass"), streams)
        with open(SCRIPT, "w", encoding="utf-8", errors="surrogatepass", newline="") as file:
            file.write(job["source"])
    except OSError:  # the limit of files is a share of that of memory
        os._exit(OUT_OF_MEMORY)
    folder = os.getcwd()
    sys.argv = [SCRIPT]
    sys.path.insert(0, folder)
    path = os.path.join(folder, SCRIPT)
    names = module("__main__", job)
    names |= {"__file__": path, "__cached__": None, "__annotations__": {}, "__builtins__": builtins}
    return compiled(job["source"], path, returns=True), names


def show(kind: type[BaseException], error: BaseException, trace: types.TracebackType | None) -> None:
    """What happens to an exception that nothing catches."""
    if issubclass(kind, MemoryError):
        os._exit(OUT_OF_MEMORY)
    sys.__excepthook__(kind, error, trace)


def redirect(channel: Channel, stdin: bytes, folder: str) -> None:
    """Standard input becomes a file, standard output a pipe of which the other side of the channel gets the other end.

    Both have names, to which /dev/stdin and /dev/stdout lead.
    """
    source, sink = (os.path.join(folder, os.path.basename(name)) for name in (STDIN, STDOUT))
    with open(source, "wb") as file:
        file.write(stdin)
    os.mkfifo(sink)
    reader = os.open(sink, os.O_RDONLY | os.O_NONBLOCK)  # or it would wait for somebody who writes
    os.set_blocking(reader, True)
    for number, opened in enumerate((os.open(source, os.O_RDONLY), os.open(sink, os.O_WRONLY))):
        os.dup2(opened, number)
        os.close(opened)
    try:
        socket.send_fds(channel.sock, [b"\0"], [reader])
    except OSError as error:
        raise Gone(str(error)) from None
    os.close(reader)
    channel.sock.close()
    sys.stdin = sys.__stdin__ = standard(0, "r", "<stdin>")  # type: ignore[misc]
    sys.stdout = sys.__stdout__ = standard(1, "w", "<stdout>")  # type: ignore[misc]


def standard(number: int, mode: Literal["r", "w"], name: str) -> io.TextIOWrapper:
    """A stream as the interpreter makes it when it starts; those that it made have seen other files."""
    raw = io.FileIO(number, mode, closefd=False)
    raw.name = name
    buffer: Any = io.BufferedReader(raw) if mode == "r" else io.BufferedWriter(raw)
    stream = io.TextIOWrapper(buffer, sys.stdin.encoding, sys.stdin.errors, newline="\n")
    stream.mode = mode  # type: ignore[misc]
    return stream


def module(name: str, job: dict[str, Any]) -> dict[str, Any]:
    """The names of a new module, which is imported as `name`.  Imports that a program may count on are among the
    builtins, where they hide nothing."""
    sys.modules[name] = types.ModuleType(name)
    imported: dict[str, Any] = {}
    exec(job["imports"] or "", imported)
    imported.pop("__builtins__")
    vars(builtins).update({name: value for name, value in imported.items() if not hasattr(builtins, name)})
    return vars(sys.modules[name])


def compiled(source: str, file: str, *, returns: bool) -> types.CodeType:
    """The code of a program, without the byte order mark that it may begin with.

    returns: it may end by a `return` outside of functions, and is made one if it does.
    """
    source = source.removeprefix("\ufeff")
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
        names = module(MODULE, job)
        exec(compiled(job["source"], f"<{MODULE}>", returns=False), names)
    except BaseException as error:  # noqa: BLE001 - a program may raise anything
        channel.send_packed(to_bytes(["raise", *described(error)]))
        return
    channel.send_packed(to_bytes(["return", [], None]))
    answer_calls(channel, partial(function_of, names))


def function_of(names: dict[str, Any], name: str) -> Callable[..., Any]:
    """A function of the program, or a method of its class Solution; or `random.seed`, which tests may call, too.

    Or a builtin: the known solution may have a helper of such a name, which this program does without.
    """

    def method(*arguments: Any, **keywords: Any) -> Any:
        return getattr(names["Solution"](), name)(*arguments, **keywords)

    if name in names:
        function: Callable[..., Any] = names[name]
        return function
    if name == "random.seed":
        return random.seed
    if "Solution" in names:
        return method
    if hasattr(builtins, name):
        builtin: Callable[..., Any] = getattr(builtins, name)
        return builtin
    raise NameError(f"name {name!r} is not defined")

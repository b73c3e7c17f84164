"""The process inside a sandbox that forks another for every program.  It never reads a program or a test itself.

Over the control socket (packets, each end speaks in turn): "run" with file descriptors starts a child, "end" kills it;
between the two, or after "end", the server tells once how the child ended.  The end of the socket ends the server.
"""

import gc
import importlib
import mmap
import os
import select
import signal
import site
import socket
import sys
from contextlib import suppress
from types import CodeType
from typing import Any

from bytemtp.sandbox.candidate import STDIN, Mapping
from bytemtp.sandbox.candidate import run as run_program
from bytemtp.sandbox.lockdown import Filter, Namespaces, drop_capabilities, limit_processes, limit_resources
from bytemtp.sandbox.referee import run as run_tests
from bytemtp.sandbox.wire import Channel

WARM = "bisect collections copy functools heapq itertools json math operator random re string time typing"
"""What programs import most, imported before the forks.  Rarer modules would cost every fork more than they save."""
MOST_DESCRIPTORS = 4


def main(control: socket.socket, settings: dict[str, Any]) -> tuple[CodeType, dict[str, Any]]:
    """Serve until the host closes the control socket; returns only in the child of a script, of which it gives the
    code and the names to run it with."""
    for name in WARM.split():
        importlib.import_module(name)
    site.setquit()  # exit() and quit(), which python -S leaves out
    site.setcopyright()
    site.sethelper()
    if settings["packages"]:
        sys.path.append(settings["packages"])
    make = Isolated if settings["isolated"] else Maker
    maker = make(settings)
    gc.freeze()  # a collection in a child need not copy our pages
    control.send(b"ready")
    while True:
        request, descriptors, _, _ = socket.recv_fds(control, 16, MOST_DESCRIPTORS)
        if not request:
            sys.exit()
        pid = maker.fork()
        if pid == 0:
            control.detach()  # its number is another's now
            return maker.child(descriptors)
        for descriptor in descriptors:
            os.close(descriptor)
        host_is_there = supervise(control, pid)
        maker.clear(pid)
        if not host_is_there:
            sys.exit()


def supervise(control: socket.socket, pid: int) -> bool:
    """Wait for the child or for the host's word to end it, and report; False when the host has gone."""
    pidfd = os.pidfd_open(pid)
    watched: list[Any] = [control, pidfd]
    ready, _, _ = select.select(watched, [], [])
    os.close(pidfd)
    word = control.recv(16) if control in ready else b""
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
        os.killpg(pid, signal.SIGKILL)
    _, status = os.waitpid(pid, 0)
    with suppress(BrokenPipeError):
        control.send(str(os.waitstatus_to_exitcode(status)).encode())
    return bool(word or (control not in ready and control.recv(16)))


class Maker:
    """Children without isolation, each in a folder of its own."""

    streams = "."

    def __init__(self, settings: dict[str, Any]) -> None:
        self.settings = settings

    def fork(self) -> int:
        return os.fork()

    def child(self, descriptors: list[int]) -> tuple[CodeType, dict[str, Any]]:
        """Returns for a script only."""
        os.setsid()
        os.dup2(1, 2)  # the host has read our last words by now
        lowest = 3
        for number, descriptor in enumerate(descriptors, lowest):
            os.dup2(descriptor, number)  # each is at least as high as its new number, so none is overwritten
        os.closerange(lowest + len(descriptors), 1024)
        self.enter()
        channels = [Channel(socket.socket(fileno=lowest + i)) for i in range(len(descriptors))]
        if self.settings["role"] == "referee":
            run_tests(*channels)
            os._exit(0)
        return run_program(channels[0], self.streams)

    def enter(self) -> None:
        folder = folder_of(os.getpid())
        os.makedirs(folder, exist_ok=True)
        os.chdir(folder)
        self.limit()

    def clear(self, pid: int) -> None:
        """In the server, after the child's end: numbers of processes come again, and find no files of another then."""
        import shutil  # not above: inside a sandbox, nothing needs it

        shutil.rmtree(folder_of(pid), ignore_errors=True)

    def limit(self) -> None:
        limit_resources(*(self.settings[name] for name in ("seconds", "memory", "file_bytes")))


def folder_of(pid: int) -> str:
    return f"program-{pid}"


class Isolated(Maker):
    """Children in namespaces of their own, without capabilities, with a filter of system calls."""

    streams = os.path.dirname(STDIN)

    def __init__(self, settings: dict[str, Any]) -> None:
        super().__init__(settings)
        self._namespaces = Namespaces() if settings["role"] == "candidate" else None
        self._filter = Filter()

    def fork(self) -> int:
        return self._namespaces.fork() if self._namespaces else os.fork()

    def enter(self) -> None:
        if self._namespaces:
            self._namespaces.enter(self.settings["file_bytes"])
        os.chdir("/tmp")
        drop_capabilities()
        self.limit()
        mmap.mmap = Mapping  # type: ignore[misc]
        self._filter.install()

    def clear(self, pid: int) -> None:
        """It has no folder of its own: what a program wrote has ended with its namespace."""

    def limit(self) -> None:
        super().limit()
        limit_processes()

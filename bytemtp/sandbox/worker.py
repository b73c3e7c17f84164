"""The host's side: runs programs one after another in a pair of servers, and owns the clock and the memory limit.

Try:  python -m bytemtp.evaluate execute --problems HumanEval.jsonl.gz --canonical --out checked
"""

import select
import signal
import socket
import threading
import time
from typing import Any, NamedTuple

from bytemtp.sandbox.calls import StayedBy
from bytemtp.sandbox.candidate import OUT_OF_MEMORY
from bytemtp.sandbox.launch import Launch, Role, Server
from bytemtp.sandbox.memory import processor_seconds, used
from bytemtp.sandbox.wire import MOST_BYTES, Channel, Gone, pack

POLL_SECONDS = 0.02
"""Memory is looked at so often."""
ENOUGH = 0.9
"""Of its time, in which a program that is timed out has had the processor: less, and others may have been to blame."""


class Outcome(NamedTuple):
    """Of one program."""

    passed: bool
    result: str
    cannot_travel: StayedBy | None = None
    """program and tests would have had to share a value of the one or the other that is no plain value, so that these
    may be right only together"""


CRASHED = Outcome(False, "crashed")
TESTS_ENDED = Outcome(False, "failed: the process of the tests has ended")


class Stopped(Exception):
    """The worker was told to stop."""


class Limit(Exception):
    """A limit was reached; the message is the result."""


class Worker:
    """A pair of servers.  For one thread at a time; the servers end with the thread that made them.

    starved: the last program has run out of time, but had not had the processor for most of it.
    """

    def __init__(self, launch: Launch, stopping: threading.Event | None = None) -> None:
        self._launch = launch
        self._stopping = stopping or threading.Event()
        self._servers: list[Server] = []
        self.starved = False

    def close(self) -> None:
        for server in self._servers:
            server.close()
        self._servers = []

    def run(self, job: dict[str, Any]) -> Outcome:
        """Judge a program: a job as in `referee.py`.  Where the servers die under it, it gets a second chance."""
        self.starved = False
        message = pack(job)
        if len(message) > MOST_BYTES:
            return Outcome(False, f"failed: program and tests have more than {MOST_BYTES} bytes")
        return self._attempt(message) or self._attempt(message) or Outcome(False, "crashed: with its sandbox")

    def _attempt(self, job: bytes) -> Outcome | None:
        try:
            host = self._start(*self._started())
        except OSError:  # a server has died since the last program: of the system's lack of memory, say
            self.close()
            return None
        try:
            outcome, ended = self._judge(host, job, self._servers[0])
        finally:
            host.sock.close()
            status = self._end()
        if outcome not in (CRASHED, TESTS_ENDED) and not (ended and status != 0):
            return outcome
        if status is None:
            return None
        return outcome if outcome == TESTS_ENDED else how_it_ended(status)

    def _started(self) -> list[Server]:
        """The servers, candidate's and referee's.  UserError if one does not come up."""
        roles: tuple[Role, ...] = ("candidate", "referee")
        for role in roles[len(self._servers) :]:
            self._servers.append(self._launch.start(role))
        return self._servers

    def _start(self, candidate: Server, referee: Server) -> Channel:
        """Start one child in each server, joined by a channel; ours to the referee's."""
        (near, far), (ours, theirs) = socket.socketpair(), socket.socketpair()
        try:
            candidate.run([near])
            referee.run([far, theirs])
        except OSError:
            ours.close()
            raise
        finally:
            for sock in (near, far, theirs):
                sock.close()
        return Channel(ours)

    def _judge(self, host: Channel, job: bytes, candidate: Server) -> tuple[Outcome, bool]:
        """The referee's outcome within the limits, and whether the program's exit status counts, too."""
        deadline = time.monotonic() + self._launch.limits.seconds
        try:
            host.sock.settimeout(self._launch.limits.seconds)
            host.send_packed(job)
            self._wait(host.sock, candidate, deadline)
            verdict = host.receive()
            if verdict["ended"]:
                self._wait(candidate.control, candidate, deadline)
        except Limit as limit:
            return Outcome(False, str(limit)), False
        except Gone:
            return TESTS_ENDED, False
        return Outcome(verdict["passed"], verdict["result"], verdict["cannot_travel"]), verdict["ended"]

    def _wait(self, sock: socket.socket, candidate: Server, deadline: float) -> None:
        """Until there is something to read.  Limit if one is reached before."""
        poll = select.poll()
        poll.register(sock, select.POLLIN)
        while True:
            left = deadline - time.monotonic()
            if poll.poll(1000 * max(0.0, min(left, POLL_SECONDS))):
                return  # also if we come late to see it: we may have been the ones who were held up
            if left <= 0:
                seconds = sum(processor_seconds(server.pid) for server in self._servers)
                self.starved = seconds < ENOUGH * self._launch.limits.seconds
                raise Limit("timed out")
            if self._stopping.is_set():
                raise Stopped
            if used(candidate.pid, self._launch) > self._launch.limits.memory:
                raise Limit("memory")

    def _end(self) -> int | None:
        """End both children; the candidate's exit status.  Servers that do not answer are replaced."""
        try:
            status, _ = [server.end() for server in self._servers]
        except (OSError, ValueError):
            self.close()
            return None
        return status


def how_it_ended(status: int) -> Outcome:
    """The result for a program that ended before its answer, or a script that ended badly."""
    if status == OUT_OF_MEMORY:
        return Outcome(False, "memory")
    if status < 0:
        named = -status in set(signal.Signals)  # those for real-time use have no names
        return Outcome(False, f"crashed: {signal.Signals(-status).name if named else f'signal {-status}'}")
    return Outcome(False, f"crashed: exit status {status}")

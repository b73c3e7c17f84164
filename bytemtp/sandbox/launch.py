"""How a server is started: inside bubblewrap as an unprivileged user, or, on explicit demand, without any isolation."""

import json
import os
import shutil
import socket
import struct
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from bytemtp.common.errors import UserError
from bytemtp.sandbox.candidate import STDIN, STDOUT

Role = Literal["candidate", "referee"]

NOBODY = 65534
"""Root becomes this user first: the kernel does not limit how many processes root has, and lets it read its files."""
INSIDE = 1000
"""User and group that programs see themselves as."""
HEADER = 1 << 20
START_SECONDS = 20.0
PATIENCE = 5.0
"""Seconds that a server has to answer its host."""

MODULES = ("wire", "exceptions", "calls", "lockdown", "candidate", "referee", "server")
"""What a server needs of this package, in import order.  It gets the text: it can see none of our files."""
BOOT = f"""
import sys
sys.path.remove("")
import json, os, socket, types
control = socket.socket(fileno=int(sys.argv[1]))
if control.fileno() != 3:  # the lowest, so that all others are low, too
    os.dup2(control.detach(), 3)
    os.closerange(4, int(sys.argv[1]) + 1)
    control = socket.socket(fileno=3)
job = json.loads(control.recv({HEADER}))
del sys.argv[1:]
for name, source in job["modules"]:
    sys.modules[name] = types.ModuleType(name)
    exec(compile(source, name, "exec"), sys.modules[name].__dict__)
exec(*sys.modules["bytemtp.sandbox.server"].main(control, job["settings"]))
"""
"""The last line runs a script, in a child, with as few frames below it as can be: it may count on its recursion."""
ENVIRONMENT = {"PATH": "/usr/bin:/bin", "LANG": "C.UTF-8", "PYTHONUTF8": "1", "HOME": "/tmp", "TMPDIR": "/tmp"}
# The same hashes in every process: sets of strings have one order, and a resumed run the verdicts of a straight one.
ENVIRONMENT |= {"PYTHONHASHSEED": "0", "OMP_NUM_THREADS": "1", "PYTHONINTMAXSTRDIGITS": "0"}
PACKAGES = "/packages"
"""Where a sandbox has the packages that are let in."""


@dataclass(frozen=True)
class Limits:
    """What one program may use."""

    seconds: float = 3.0
    """wall-clock time until the verdict; for a script, of each test case"""
    memory_mib: int = 1024
    """resident memory of all its processes and of the files that it writes"""

    @property
    def memory(self) -> int:
        return self.memory_mib << 20

    @property
    def file_bytes(self) -> int:
        """Size of each file system that it may write to."""
        return self.memory // 4


@dataclass(frozen=True)
class Launch:
    """A way to start servers."""

    python: str
    prefix: str
    """folder of the interpreter"""
    isolated: bool
    limits: Limits
    packages: str = ""
    """folder of packages that programs and tests may import, besides the standard library"""

    def start(self, role: Role) -> "Server":
        """UserError if the server does not come up."""
        return Server(self, role)

    def command(self, role: Role) -> list[str]:
        python = [self.python, "-B", "-S", "-s", "-c", BOOT]
        if not self.isolated:
            return python
        program, *words = bubblewrap(self.prefix, role)
        bound = ["--ro-bind", self.packages, PACKAGES] if self.packages else []
        return [program, *bound, *words, *python]

    def settings(self, role: Role) -> dict[str, Any]:
        limits = {"seconds": self.limits.seconds, "memory": self.limits.memory, "file_bytes": self.limits.file_bytes}
        packages = PACKAGES if self.packages and self.isolated else self.packages
        return {"role": role, "isolated": self.isolated, "packages": packages, **limits}


def bubblewrap(prefix: str, role: Role) -> list[str]:
    """A file system of /usr and devices, all read-only but /tmp and /dev/shm; no network; no capabilities but the one
    that makes namespaces for programs, which give it up."""
    words = "--unshare-all --unshare-user --die-with-parent --new-session --clearenv --hostname sandbox"
    words += f" --uid {INSIDE} --gid {INSIDE} --ro-bind /usr /usr --ro-bind-try /etc/ld.so.cache /etc/ld.so.cache"
    for folder in ("bin", "lib", "lib64"):
        if Path("/", folder).is_symlink():
            words += f" --symlink usr/{folder} /{folder}"
        elif Path("/", folder).exists():
            words += f" --ro-bind /{folder} /{folder}"
    bound = [] if Path(prefix).is_relative_to("/usr") else ["--ro-bind", prefix, prefix]  # whose name may have a space
    words += " --tmpfs /dev"  # without /dev/zero: to map it is to have shared memory that no process is charged for
    for device in ("null", "full", "random", "urandom"):
        words += f" --dev-bind /dev/{device} /dev/{device}"
    words += " --dir /dev/fd"
    for number, (name, file) in enumerate({"stdin": STDIN, "stdout": STDOUT, "stderr": "/dev/null"}.items()):
        words += f" --symlink {file} /dev/fd/{number} --symlink fd/{number} /dev/{name}"
    words += " --dir /dev/shm --remount-ro /dev --tmpfs /dev/shm --tmpfs /tmp --remount-ro / --chdir /tmp"
    words += " --cap-drop ALL" + " --cap-add CAP_SYS_ADMIN" * (role == "candidate")
    program = shutil.which("bwrap") or "bwrap"
    return [program, *bound, *words.split()] + [
        word for name, value in ENVIRONMENT.items() for word in ("--setenv", name, value)
    ]


class Server:
    """One long-lived process that forks another for every program (`server.py`)."""

    def __init__(self, launch: Launch, role: Role) -> None:
        self.control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.control.settimeout(START_SECONDS)
        self.control.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        self._folder = None if launch.isolated else tempfile.TemporaryDirectory()
        as_nobody: dict[str, Any] = (
            dict(user=NOBODY, group=NOBODY, extra_groups=[]) if launch.isolated and os.geteuid() == 0 else {}
        )
        try:
            self._process: subprocess.Popen[bytes] = subprocess.Popen(
                [*launch.command(role), str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                pass_fds=[theirs.fileno()],
                env=ENVIRONMENT,
                cwd=self._folder.name if self._folder else "/",
                start_new_session=True,
                **as_nobody,
            )
        except OSError as error:
            self.control.close()
            raise UserError(f"cannot start {launch.command(role)[0]}: {error.strerror}") from None
        finally:
            theirs.close()
        try:
            self.pid = self._greet(launch.settings(role))
        except BaseException:
            self.close()
            raise

    def _greet(self, settings: dict[str, Any]) -> int:
        """Send the code, wait until it runs: the server's process id, as we see it.  UserError with its last words."""
        folder = Path(__file__).parent
        modules = [(f"bytemtp.sandbox.{name}", (folder / f"{name}.py").read_text("utf-8")) for name in MODULES]
        try:
            self.control.send(json.dumps({"modules": modules, "settings": settings}).encode())
            word, extra, _, _ = self.control.recvmsg(16, socket.CMSG_SPACE(12))
        except OSError:
            word, extra = b"", []
        if word != b"ready":
            self._process.kill()
            _, said = self._process.communicate()
            raise UserError((said.decode("utf-8", "replace").strip().splitlines() or ["it does not answer"])[-1])
        self.control.settimeout(PATIENCE)
        pid, _, _ = struct.unpack("iii", extra[0][2])
        return int(pid)

    def run(self, sockets: list[socket.socket]) -> None:
        """Start a child that has these sockets."""
        socket.send_fds(self.control, [b"run"], [sock.fileno() for sock in sockets])

    def ended(self) -> int:
        """Wait for the child's end: its exit status, or a signal's number, negative."""
        return int(self.control.recv(16))

    def end(self) -> int:
        """Kill the child, if it still runs, and all that it has started; as `ended`.  OSError or ValueError if the
        server does not answer."""
        self.control.send(b"end")
        return self.ended()

    def close(self) -> None:
        self.control.close()
        with self._process as process:  # closes its standard error, and waits
            process.kill()
        if self._folder:
            self._folder.cleanup()

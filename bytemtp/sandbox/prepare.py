"""A way to start servers that works on this machine, found by trying; where there is none, what to do about it."""

import shutil
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path

from bytemtp.common.errors import UserError
from bytemtp.sandbox.launch import START_SECONDS, Launch, Limits
from bytemtp.sandbox.worker import Outcome, Worker

UNSAFE = "run the programs unprotected with --unsafe"
EMPTY = {"kind": "tests", "source": "", "prelude": "", "remote": [], "program": ""}
"""A program of nothing, and its tests."""


def prepare(limits: Limits, *, unsafe: bool = False, packages: Path | None = None) -> Launch:
    """A way to start servers that has been tried.  packages: a folder of them that programs and tests may import.

    UserError if programs cannot be isolated here and `unsafe` is not given.
    """
    if packages is not None and not packages.is_dir():
        raise UserError(f"{packages} is no folder; --site-packages must name one that packages are installed in")
    folder = str(packages.resolve()) if packages is not None else ""
    if unsafe:
        return Launch(sys.executable, "", isolated=False, limits=limits, packages=folder)
    if not sys.platform.startswith("linux"):
        raise UserError(f"programs can be isolated on Linux only, not on {sys.platform}; use Linux, or --unsafe")
    if shutil.which("bwrap") is None:
        raise UserError(
            f"programs are isolated by bubblewrap (bwrap), which is not installed. "
            f"Install it (apt install bubblewrap), or {UNSAFE}"
        )
    if not Path(f"/proc/self/task/{threading.get_native_id()}/children").exists():
        raise UserError(
            f"memory cannot be watched: this kernel lacks /proc/PID/task/TID/children; use another, or {UNSAFE}"
        )
    complaints = []
    for python, prefix in interpreters():
        launch = Launch(python, prefix, isolated=True, limits=limits, packages=folder)
        try:
            try_out(launch)
        except UserError as error:
            complaints.append(f"{python}: {error}")
            continue
        if complaints:  # a Python of another version may lack what the programs count on
            print(f"programs are run by {python}, because {'; '.join(complaints)}", file=sys.stderr, flush=True)
        return launch
    raise UserError(f"programs cannot be isolated here: {'; '.join(complaints)}. {hint()}")


def interpreters() -> Iterator[tuple[str, str]]:
    """Pythons to try, with their folders: ours, then the system's (ours may lie where NOBODY cannot read)."""
    yield str(Path(sys.base_prefix, "bin", f"python{sys.version_info[0]}")), sys.base_prefix
    for python in ("/usr/bin/python3", "/usr/local/bin/python3"):
        if Path(python).exists():
            yield python, "/usr"


def try_out(launch: Launch) -> None:
    """Run an empty program.  UserError if that does not work."""
    [outcome] = tried(launch, [""])
    if not outcome.passed:
        raise UserError(outcome.result)


def tried(launch: Launch, tests: Sequence[str]) -> list[Outcome]:
    """How each of these tests of an empty program ends."""
    patient = replace(launch, limits=replace(launch.limits, seconds=START_SECONDS))
    with closing(Worker(patient)) as worker:
        return [worker.run(EMPTY | {"program": program}) for program in tests]


def hint() -> str:
    """What usually stands in the way."""
    for name, good in (("unprivileged_userns_clone", "1"), ("apparmor_restrict_unprivileged_userns", "0")):
        path = Path("/proc/sys/kernel", name)
        if path.exists() and path.read_text().strip() != good:
            return f"Allow user namespaces (sysctl kernel.{name}={good}), or {UNSAFE}"
    return f"Check that user namespaces are allowed and that /usr has a Python 3.10 or later, or {UNSAFE}"

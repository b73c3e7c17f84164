"""How much memory (and time) a program uses: its processes and the files in its tmpfs, seen from outside through /proc.

A limit of address space counts neither shared memory nor files in memory, so the resident memory is added up.
"""

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from bytemtp.sandbox.launch import Launch
from bytemtp.sandbox.lockdown import WRITABLE

PAGE = os.sysconf("SC_PAGE_SIZE")
COUNTED = (b"Pss_Anon:", b"Pss_Shmem:")


def used(server: int, launch: Launch) -> int:
    """Bytes that the children of a server use.  What maps a file in a tmpfs counts in both."""
    pids = list(descendants(server))
    files = tmpfs_bytes(pids[0]) if pids and launch.isolated else 0
    quick = files + sum(map(resident, pids))  # counts what processes share once for each
    return quick if quick <= launch.limits.memory else files + sum(map(proportional, pids))


def descendants(pid: int) -> Iterator[int]:
    """Children of a process, theirs, and so on; parents before children."""
    for child in children(pid):
        yield child
        yield from descendants(child)


def children(pid: int) -> list[int]:
    found: list[int] = []
    with suppress(OSError):
        for task in os.listdir(f"/proc/{pid}/task"):
            with suppress(OSError):
                found += map(int, Path(f"/proc/{pid}/task/{task}/children").read_bytes().split())
    return found


def threads(pid: int) -> Iterator[Path]:
    """The process, then its threads: where the first has ended, only the others show what they share."""
    yield Path(f"/proc/{pid}")
    with suppress(OSError):
        yield from Path(f"/proc/{pid}/task").iterdir()


def resident(pid: int) -> int:
    for path in threads(pid):
        with suppress(OSError, IndexError):
            if pages := int((path / "statm").read_bytes().split()[1]):
                return PAGE * pages
    return 0


def proportional(pid: int) -> int:
    """Private memory, and a share of what is shared; files that are mapped, as libraries, are not counted."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_bytes().splitlines()
    except OSError:
        return resident(pid)
    return sum(int(line.split()[1]) << 10 for line in lines if line.startswith(COUNTED))


def tmpfs_bytes(pid: int) -> int:
    """Of the files that the program of this process has written."""
    for path in threads(pid):
        with suppress(OSError):
            stats = [os.statvfs(f"{path}/root{folder.decode()}") for folder in WRITABLE]
            return sum((stat.f_blocks - stat.f_bfree) * stat.f_frsize for stat in stats)
    return 0


def processor_seconds(server: int) -> float:
    """That the children of a server have used so far."""
    ticks = 0
    for pid in descendants(server):
        with suppress(OSError, ValueError):
            fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
            ticks += sum(map(int, fields[11:15]))  # its own and its children's, each for the program and the system
    return ticks / os.sysconf("SC_CLK_TCK")

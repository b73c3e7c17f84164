"""What a process gives up before it runs a program: namespaces, file systems, capabilities, system calls, resources.

It runs inside bubblewrap, in the server that forks the programs, and imports the standard library only.
"""

import ctypes
import math
import os
import platform
import resource
import struct
from typing import Any, NamedTuple

CLONE_NEWNS, CLONE_NEWPID = 0x20000, 0x20000000
NEW_NAMESPACES = 0x7E020080
"""Every CLONE_NEW* flag that clone takes, time aside (that one is for unshare)."""
MS_NOSUID, MS_NODEV = 2, 4
PR_SET_SECCOMP, SECCOMP_MODE_FILTER, PR_SET_NO_NEW_PRIVS = 22, 2, 38
CAPABILITY_VERSION_3 = 0x20080522

MOST_PROCESSES = 128
"""Threads count, too."""
MOST_FILES = 256
SPARE_ADDRESSES = 1 << 30
"""Address space above the memory limit: stacks and arenas of threads reserve more than they use."""
WRITABLE = (b"/tmp", b"/dev/shm")

libc = ctypes.CDLL(None, use_errno=True)


def call(function: str, *arguments: Any) -> int:
    """A function of the C library.  OSError if it fails."""
    result = int(getattr(libc, function)(*arguments))
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{function}: {os.strerror(code)}")
    return result


class Namespaces:
    """Forks children, each the first process of a process namespace of its own: killing it kills all that it started.

    Needs CAP_SYS_ADMIN in the user namespace that bubblewrap made; the children give it up in `enter`.
    """

    def __init__(self) -> None:
        self._own = os.pidfd_open(os.getpid())

    def fork(self) -> int:
        call("unshare", CLONE_NEWPID)
        pid = os.fork()
        if pid:
            call("setns", self._own, CLONE_NEWPID)
        return pid

    def enter(self, tmpfs_bytes: int) -> None:
        """In the child: empty, limited file systems wherever it may write."""
        call("unshare", CLONE_NEWNS)
        size = f"size={tmpfs_bytes},nr_inodes=65536,mode=1777".encode()
        for path in WRITABLE:
            call("mount", b"tmpfs", path, b"tmpfs", MS_NOSUID | MS_NODEV, size)


def drop_capabilities() -> None:
    header = struct.pack("Ii", CAPABILITY_VERSION_3, 0)
    call("capset", header, bytes(24))


def limit_resources(seconds: float, memory: int, file_bytes: int) -> None:
    """Limits of each process; the memory of all together is watched from outside."""
    limits = {
        resource.RLIMIT_AS: memory + SPARE_ADDRESSES,
        resource.RLIMIT_CPU: math.ceil(seconds) + 1,
        resource.RLIMIT_NOFILE: MOST_FILES,
        resource.RLIMIT_FSIZE: file_bytes,
        resource.RLIMIT_MEMLOCK: 0,
        resource.RLIMIT_CORE: 0,
    }
    for name, value in limits.items():
        limit(name, value)


def limit_processes() -> None:
    """For isolated programs only: without a user namespace, all processes of the user count."""
    limit(resource.RLIMIT_NPROC, MOST_PROCESSES)


def limit(name: int, value: int) -> None:
    _, hard = resource.getrlimit(name)
    value = value if hard == resource.RLIM_INFINITY else min(value, hard)
    resource.setrlimit(name, (value, value))


class Arch(NamedTuple):
    """How seccomp names a processor architecture, which of the two numbers of a system call is its own, and from which
    on there are none, up to those that all architectures share."""

    audit: int
    column: int
    gap: int


ARCHES = {"x86_64": Arch(0xC000003E, 0, 335), "aarch64": Arch(0xC00000B7, 1, 295)}
FIRST_SHARED, LAST_REVIEWED = 424, 462
"""pidfd_send_signal and, of Linux 6.10, mseal.  A newer system call, or one in the gap, which nobody has looked at yet,
is not there, as on an older kernel; nor are those of x86-64's other ABI, x32, whose numbers begin at 2^30.  (Newer
kernels ask no filter for x86-64's 335 and 336, which end a process that calls them by itself.)"""

SYSCALLS = {
    "ptrace": (101, 117),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "pidfd_getfd": (438, 438),
    "kcmp": (312, 272),
    "unshare": (272, 97),
    "setns": (308, 268),
    "mount": (165, 40),
    "umount2": (166, 39),
    "pivot_root": (155, 41),
    "chroot": (161, 51),
    "open_tree": (428, 428),
    "move_mount": (429, 429),
    "fsopen": (430, 430),
    "fsconfig": (431, 431),
    "fsmount": (432, 432),
    "fspick": (433, 433),
    "mount_setattr": (442, 442),
    "statmount": (457, 457),
    "listmount": (458, 458),
    "name_to_handle_at": (303, 264),
    "open_by_handle_at": (304, 265),
    "fanotify_init": (300, 262),
    "quotactl": (179, 60),
    "quotactl_fd": (443, 443),
    "lookup_dcookie": (212, 18),
    "lsm_set_self_attr": (460, 460),
    "acct": (163, 89),
    "swapon": (167, 224),
    "swapoff": (168, 225),
    "reboot": (169, 142),
    "kexec_load": (246, 104),
    "kexec_file_load": (320, 294),
    "init_module": (175, 105),
    "finit_module": (313, 273),
    "delete_module": (176, 106),
    "syslog": (103, 116),
    "personality": (135, 92),
    "bpf": (321, 280),
    "perf_event_open": (298, 241),
    "userfaultfd": (323, 282),
    "io_uring_setup": (425, 425),
    "io_uring_enter": (426, 426),
    "io_uring_register": (427, 427),
    # These keep something after the program has ended, or memory that no process is charged for.
    "add_key": (248, 217),
    "request_key": (249, 218),
    "keyctl": (250, 219),
    "shmget": (29, 194),
    "semget": (64, 190),
    "msgget": (68, 186),
    "mq_open": (240, 180),
    "memfd_create": (319, 279),
    "memfd_secret": (447, 447),
    "vmsplice": (278, 75),
}
"""Refused: (number on x86-64, number on aarch64)."""
CLONE, CLONE3, SOCKET, MMAP = (56, 220), (435, 435), (41, 198), (9, 222)
FAMILIES = (1, 2, 10)
"""Socket families left: AF_UNIX, AF_INET, AF_INET6.  Others, as vsock, are not bound by a network namespace."""

MAP_SHARED, MAP_ANONYMOUS = 1, 32
"""Together refused: all such pages stay while one of them is mapped, and count for no process then.  Files in /dev/shm
do for shared memory: they are counted."""

LOAD, EQUAL, AT_LEAST, ANY_BIT, RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
ALLOW, KILL, ERRNO = 0x7FFF0000, 0x80000000, 0x00050000
EPERM, ENOSYS = 1, 38


class Filter:
    """A seccomp program, made once and installed in every child."""

    def __init__(self) -> None:
        arch = ARCHES.get(platform.machine())
        if arch is None:
            raise OSError(ENOSYS, f"no system call filter for {platform.machine()}; known: {', '.join(ARCHES)}")
        code = b"".join(struct.pack("HBBI", *line) for line in _lines(arch))
        self._code = ctypes.create_string_buffer(code, len(code))
        self._program = struct.pack("HxxxxxxQ", len(code) // 8, ctypes.addressof(self._code))

    def install(self) -> None:
        call("prctl", PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
        call("prctl", PR_SET_SECCOMP, SECCOMP_MODE_FILTER, self._program, 0, 0)


def _lines(arch: Arch) -> list[tuple[int, int, int, int]]:
    """(operation, lines to skip if true, if false, operand).  The data: number at 0, architecture 4, arguments 16."""
    column = arch.column
    lines = [(LOAD, 0, 0, 4), (EQUAL, 1, 0, arch.audit), (RETURN, 0, 0, KILL), (LOAD, 0, 0, 0)]
    lines += [(AT_LEAST, 2, 0, LAST_REVIEWED + 1), (AT_LEAST, 0, 2, arch.gap), (AT_LEAST, 1, 0, FIRST_SHARED)]
    lines += [(RETURN, 0, 0, ERRNO | ENOSYS)]
    for numbers in SYSCALLS.values():
        lines += [(EQUAL, 0, 1, numbers[column]), (RETURN, 0, 0, ERRNO | EPERM)]
    # Not there, as on an old kernel: the C library then uses clone, whose flags a filter can read.
    lines += [(EQUAL, 0, 1, CLONE3[column]), (RETURN, 0, 0, ERRNO | ENOSYS)]
    lines += [(EQUAL, 0, 4, CLONE[column]), (LOAD, 0, 0, 16), (ANY_BIT, 0, 1, NEW_NAMESPACES)]
    lines += [(RETURN, 0, 0, ERRNO | EPERM), (RETURN, 0, 0, ALLOW)]
    lines += [
        (EQUAL, 0, 5, MMAP[column]),
        (LOAD, 0, 0, 40),
        (ANY_BIT, 0, 2, MAP_ANONYMOUS),
        (ANY_BIT, 0, 1, MAP_SHARED),
    ]
    lines += [(RETURN, 0, 0, ERRNO | EPERM), (RETURN, 0, 0, ALLOW)]
    lines += [(EQUAL, 0, len(FAMILIES) + 2, SOCKET[column]), (LOAD, 0, 0, 16)]
    lines += [(EQUAL, len(FAMILIES) - i, 0, family) for i, family in enumerate(FAMILIES)]
    return [*lines, (RETURN, 0, 0, ERRNO | EPERM), (RETURN, 0, 0, ALLOW)]

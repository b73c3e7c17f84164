"""The filter of system calls, on both architectures, by a machine that runs it as the kernel does."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bytemtp.sandbox import lockdown
from bytemtp.sandbox.lockdown import ALLOW, ARCHES, ENOSYS, EPERM, ERRNO, KILL, SYSCALLS, Arch

REFUSED, ABSENT = ERRNO | EPERM, ERRNO | ENOSYS
WORD = 0xFFFFFFFF


def filtered(arch: Arch, number: int, *arguments: int, audit: int | None = None) -> int:
    """What the filter returns for a system call."""
    data = {0: number, 4: arch.audit if audit is None else audit}
    data |= {16 + 8 * i: value & WORD for i, value in enumerate(arguments)}
    lines, at, loaded = lockdown._lines(arch), 0, 0
    while True:
        operation, if_true, if_false, operand = lines[at]
        at += 1
        if operation == lockdown.RETURN:
            return operand
        if operation == lockdown.LOAD:
            loaded = data.get(operand, 0)
            continue
        true = {
            lockdown.EQUAL: loaded == operand,
            lockdown.AT_LEAST: loaded >= operand,
            lockdown.ANY_BIT: bool(loaded & operand),
        }[operation]
        at += if_true if true else if_false


both = pytest.mark.parametrize("name", ARCHES)


@both
@given(st.integers(lockdown.LAST_REVIEWED + 1, WORD) | st.integers(1 << 30, (1 << 30) + 600))
def test_what_nobody_has_looked_at_is_absent(name, number):
    """Also the numbers of x32, and negative ones."""
    assert filtered(ARCHES[name], number) == ABSENT


@both
def test_the_last_one_is_the_last_and_the_gap_is_absent(name):
    arch = ARCHES[name]
    found = {number: filtered(arch, number) for number in range(lockdown.LAST_REVIEWED + 2)}
    assert found[lockdown.LAST_REVIEWED] == ALLOW and found[lockdown.LAST_REVIEWED + 1] == ABSENT
    refused = {numbers[arch.column] for numbers in SYSCALLS.values()} | {lockdown.SOCKET[arch.column]}
    absent = {lockdown.CLONE3[arch.column], lockdown.LAST_REVIEWED + 1, *range(arch.gap, lockdown.FIRST_SHARED)}
    assert {number for number, result in found.items() if result == REFUSED} == refused
    assert {number for number, result in found.items() if result == ABSENT} == absent


@both
def test_arguments_decide_where_a_call_can_do_both(name):
    arch = ARCHES[name]
    clone, mmap, socket = (numbers[arch.column] for numbers in (lockdown.CLONE, lockdown.MMAP, lockdown.SOCKET))
    assert filtered(arch, clone, 0x11) == ALLOW and filtered(arch, clone, 0x10000011) == REFUSED
    assert [filtered(arch, mmap, 0, 0, 0, flags) for flags in (33, 34, 1)] == [REFUSED, ALLOW, ALLOW]
    assert [filtered(arch, socket, family) for family in (1, 2, 10, 16, 40)] == [ALLOW] * 3 + [REFUSED] * 2


@both
def test_another_architecture_is_the_end(name):
    assert filtered(ARCHES[name], 0, audit=0x40000003) == KILL


def test_numbers_are_those_of_the_headers():
    """Where they are installed; names that they do not have yet, and the other architecture's, are not looked at."""
    headers = ["/usr/include/x86_64-linux-gnu/asm/unistd_64.h", "/usr/include/asm-generic/unistd.h"]
    for path, column in zip(headers, (0, 1), strict=True):
        if not Path(path).exists():
            continue
        lines = (line.split() for line in Path(path).read_text().splitlines() if line.startswith("#define __NR_"))
        known = {words[1][5:]: words[2] for words in lines if len(words) == 3}
        names = SYSCALLS | {"clone": lockdown.CLONE, "clone3": lockdown.CLONE3, "socket": lockdown.SOCKET}
        wrong = {n: known[n] for n, numbers in names.items() if n in known and known[n] != str(numbers[column])}
        assert wrong == {}

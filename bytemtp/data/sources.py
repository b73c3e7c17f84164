"""Where bytes come from: paths, folders, globs, standard input and URLs become a list of files to read.

Listing happens once and at the start, so that a wrong path is an error before anything is trained.  What is listed is
only names: 10 million files are some 2 GB of names, so put very many small files into a .tar first.

Try:  python -c "from bytemtp.data.sources import *; print(*find(['bytemtp'], Damages('error')), sep='\\n')"
"""

import errno
import glob
import io
import os
import stat
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol, runtime_checkable

from fsspec import AbstractFileSystem
from fsspec.core import url_to_fs

from bytemtp.common.errors import UserError

STANDARD_INPUT = "-"
OnCorrupt = Literal["error", "skip"]
LISTED_DAMAGES = 1000


class Damaged(UserError):
    """An input that is missing, unreadable or broken: what `on_corrupt="skip"` leaves out and counts."""

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(f"{name}: {reason}")
        self.name = name
        self.reason = reason


class Damages:
    """The policy for damaged inputs, and the record of those left out.

    `count` is all of them; `listed` holds (name, reason) of the first 1000, so that memory stays bounded.  An endless
    stream meets, and counts, a damaged file once an epoch.
    """

    def __init__(self, on_corrupt: OnCorrupt) -> None:
        self._on_corrupt = on_corrupt
        self.count = 0
        self.listed: list[tuple[str, str]] = []

    def report(self, damage: Damaged) -> None:
        """Raise the damage, or record it and let the caller leave the input out."""
        if self._on_corrupt == "error":
            raise damage
        self.count += 1
        if len(self.listed) < LISTED_DAMAGES:
            self.listed.append((damage.name, damage.reason))


@dataclass(frozen=True, slots=True)
class Source:
    """One file to read."""

    name: str
    """the path or URL to open, as messages show it; `-` is standard input"""
    key_start: int
    """where in `name` the part begins that does not depend on where the corpus lies"""

    @property
    def key(self) -> str:
        """The name relative to the path that the user gave: the same on every machine that holds the corpus."""
        return self.name[self.key_start :].replace(os.sep, "/")

    def open(self) -> "RawFile":
        """Open for reading from the start.  Damaged if that is not possible."""
        try:
            if self.name == STANDARD_INPUT:
                return RawFile(self.name, io.FileIO(sys.stdin.fileno(), closefd=False), size=None)
            if _is_url(self.name):
                file_system, path = _file_system(self.name)
                return RawFile(self.name, file_system.open(path, "rb"), size=file_system.size(path))
            file = io.FileIO(self.name)
            return RawFile(self.name, file, size=os.fstat(file.fileno()).st_size)
        except OSError as error:
            raise _unreadable(self.name, error) from error


@runtime_checkable
class BinaryFile(Protocol):
    """What a file must offer; local files, fsspec files and standard input all do."""

    def read(self, size: int, /) -> bytes: ...
    def readinto(self, view: memoryview, /) -> int: ...
    def seek(self, offset: int, whence: int, /) -> int: ...
    def close(self) -> None: ...


class RawFile:
    """The bytes of a file as they lie, exactly as many as it had when opened.

    A file that grows meanwhile is read to its old end; one that shrinks is Damaged.
    """

    def __init__(self, name: str, file: BinaryFile, size: int | None) -> None:
        self.name = name
        self._file = file
        self._size = size
        self._position = 0

    def readinto(self, view: memoryview) -> int:
        """Fill the front of `view`; returns how many bytes, 0 at the end.  Damaged if reading fails."""
        view = view[: self._room(len(view))]
        try:
            return self._advance(self._file.readinto(view), len(view))
        except OSError as error:
            raise _unreadable(self.name, error) from error

    def read(self, size: int) -> bytes:
        """At most `size` bytes, none at the end.  Damaged if reading fails."""
        size = self._room(size)
        try:
            data = self._file.read(size)
        except OSError as error:
            raise _unreadable(self.name, error) from error
        self._advance(len(data), size)
        return data

    def skip(self, count: int) -> int:
        """Pass over `count` bytes, or as many as there are; returns how many."""
        if self._size is None:
            return skip_by_reading(self, count)
        count = self._room(count)
        self._file.seek(count, os.SEEK_CUR)
        return self._advance(count, count)

    def close(self) -> None:
        self._file.close()

    def _room(self, wanted: int) -> int:
        return wanted if self._size is None else min(wanted, self._size - self._position)

    def _advance(self, count: int, wanted: int) -> int:
        if count == 0 < wanted and self._size is not None:
            raise Damaged(self.name, f"shrank while it was read: {self._position} of {self._size} bytes were there")
        self._position += count
        return count


@runtime_checkable
class Readable(Protocol):
    """Bytes that are read forward."""

    def readinto(self, view: memoryview) -> int: ...


def skip_by_reading(file: Readable, count: int) -> int:
    """Read and forget `count` bytes, or as many as there are; returns how many."""
    scratch = memoryview(bytearray(min(count, 1 << 18)))
    left = count
    while left and (got := file.readinto(scratch[: min(left, len(scratch))])):
        left -= got
    return count - left


def find(paths: Sequence[str | os.PathLike[str]], damages: Damages) -> list[Source]:
    """The files that `paths` stand for, in order: as given, folders sorted by name, globs sorted.

    Each path is a file, a folder (all its files, recursively, through symbolic links), a glob, `-` or an fsspec URL.
    UserError if nothing is left to read.
    """
    names = [os.fspath(path) for path in paths]
    if names.count(STANDARD_INPUT) > 1:
        raise UserError("- stands twice among the paths; standard input can be read only once")
    sources = [source for name in names for source in _find_one(name, damages)]
    if not sources:
        raise UserError(f"no file to read in {', '.join(map(repr, names)) or 'no paths'}; name one that exists")
    return sources


def spool_standard_input(path: Path) -> None:
    """Copy standard input into a file, so that it can be read again: for more epochs, and to resume."""
    with path.open("wb") as file:
        while data := sys.stdin.buffer.read(1 << 20):
            file.write(data)


def _find_one(name: str, damages: Damages) -> Iterator[Source]:
    if name == STANDARD_INPUT:
        yield Source(name, 0)
        return
    found = False
    try:
        for source in _find_url(name) if _is_url(name) else _find_local(name, damages):
            found = True
            yield source
        if not found:
            raise Damaged(name, "holds no file")
    except Damaged as damage:
        damages.report(damage)
    except OSError as error:
        damages.report(_unreadable(name, error))


def _find_local(name: str, damages: Damages) -> Iterator[Source]:
    if not os.path.lexists(name) and glob.has_magic(name):
        yield from _find_glob(name, damages)
        return
    status = os.stat(name)
    if stat.S_ISDIR(status.st_mode):
        yield from _walk(name, len(os.path.join(name, "")), damages, ancestors=())
        return
    if not stat.S_ISREG(status.st_mode):
        raise Damaged(name, "is neither a file nor a folder; pipe it into standard input and name that as -")
    if status.st_size == 0:
        raise Damaged(name, "is empty")
    yield Source(name, len(name) - len(os.path.basename(name)))


def _find_glob(pattern: str, damages: Damages) -> Iterator[Source]:
    """What a pattern matches, folders with all their files; `**` gives files at any depth by itself."""
    hits = sorted(glob.glob(pattern, recursive=True))
    if not hits:
        raise Damaged(pattern, "no such file or folder, and nothing matches it as a pattern")
    key_start = _fixed_part(pattern)
    for hit in hits:
        if "**" not in pattern:
            yield from _entry(hit, key_start, damages, ancestors=())
        elif _is_loop(hit, key_start):
            damages.report(Damaged(hit, "goes through a symbolic link to a folder that holds it: a loop"))
            return
        elif not os.path.isdir(hit):
            yield from _entry(hit, key_start, damages, ancestors=())


def _fixed_part(pattern: str) -> int:
    """Length of the leading folders without a wildcard."""
    head = pattern[: next(place for place, letter in enumerate(pattern) if letter in "*?[")]
    return len(head) - len(os.path.basename(head))


def _is_loop(path: str, key_start: int) -> bool:
    """Whether a folder below the pattern's fixed part is met twice on the way to `path`."""
    folders = [path[:end] for end in range(key_start, len(path)) if path[end] == os.sep]
    return len({_identity(os.stat(folder)) for folder in folders}) < len(folders)


def _walk(folder: str, key_start: int, damages: Damages, ancestors: tuple[tuple[int, int], ...]) -> Iterator[Source]:
    """All regular files below `folder`, sorted by name, each symbolic link followed."""
    try:
        identity = _identity(os.stat(folder))
        if identity in ancestors:
            raise Damaged(folder, "is a symbolic link to a folder that holds it: a loop")
        entries = sorted(os.listdir(folder))
    except OSError as error:
        damages.report(_unreadable(folder, error))
        return
    except Damaged as damage:
        damages.report(damage)
        return
    for entry in entries:
        yield from _entry(os.path.join(folder, entry), key_start, damages, (*ancestors, identity))


def _entry(name: str, key_start: int, damages: Damages, ancestors: tuple[tuple[int, int], ...]) -> Iterator[Source]:
    """What one name in a folder stands for.  Sockets, pipes and devices are left alone."""
    try:
        mode = os.stat(name).st_mode
    except OSError as error:
        damages.report(_unreadable(name, error))
        return
    if stat.S_ISDIR(mode):
        yield from _walk(name, key_start, damages, ancestors)
    elif stat.S_ISREG(mode):
        yield Source(name, key_start)


def _identity(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino


def _is_url(name: str) -> bool:
    return "://" in name


def _find_url(url: str) -> Iterator[Source]:
    file_system, path = _file_system(url)
    if glob.has_magic(path) and not file_system.exists(path):
        found = sorted(hit for hit in file_system.glob(path) if file_system.isfile(hit))
        root = path[: _fixed_part(path)]
    elif file_system.isdir(path):
        found, root = sorted(file_system.find(path)), path
    elif file_system.exists(path):
        found, root = [path], path.rpartition("/")[0]
        if file_system.size(path) == 0:
            raise Damaged(url, "is empty")
    else:
        raise Damaged(url, "no such file or folder")
    for file in found:
        name = file_system.unstrip_protocol(file)
        inner = file[len(root) :].lstrip("/")
        yield Source(name, len(name) - len(inner))


def _file_system(url: str) -> tuple[AbstractFileSystem, str]:
    try:
        file_system, path = url_to_fs(url)
    except ImportError as error:
        raise UserError(f"{url}: {error}; install the package of that protocol") from error
    except ValueError as error:
        raise UserError(f"{url}: {error}") from error
    return file_system, path


def _unreadable(name: str, error: OSError) -> Damaged:
    if error.errno == errno.ELOOP:
        return Damaged(name, "is a symbolic link that leads back to itself: a loop")
    if error.errno == errno.ENOENT:
        return Damaged(name, "is a symbolic link to nothing" if os.path.islink(name) else "no such file or folder")
    return Damaged(name, f"cannot be read: {error.strerror or error}")

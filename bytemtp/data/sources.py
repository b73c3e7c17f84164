"""Where bytes come from: paths, folders, globs, standard input and URLs become a list of files to read.

Listing happens at the start, so that a wrong path is an error before anything is trained.  What is listed is
only names: 10 million files are some 2 GB of names, so put very many small files into a .tar first.

Try:  python -c "from bytemtp.data.sources import *; print(*find(['bytemtp'], SkipLog('error')), sep='\\n')"
"""

import errno
import glob
import io
import os
import re
import shutil
import stat
import sys
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from fsspec import AbstractFileSystem
from fsspec.core import url_to_fs

from bytemtp.common.errors import UserError
from bytemtp.data.leave_out import NO_CORPUS, LeaveOut, output_in

STANDARD_INPUT = "-"
READ_BYTES = 1 << 18
OnCorrupt = Literal["error", "skip"]
LISTED_DAMAGES = 1000

_CHANGES = ("etag", "mtime", "lastmodified", "updated", "created")
"""Where file systems of fsspec say that a file has changed, the surest first."""


class Damaged(UserError):
    """An input that is missing, unreadable or broken: what `on_corrupt="skip"` leaves out and counts."""

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(f"{name}: {reason}")
        self.name = name
        self.reason = reason


class SkipLog:
    """The policy for damaged inputs, and the record of those left out.

    `count` is all of them; `listed` holds (name, reason) of the first 1000, so that memory stays bounded.  A damaged
    file is met, and counted, each time that it is read: in every sweep of every epoch.  `left_out` counts what is
    sound but no corpus, by reason (`LeaveOut`).
    """

    def __init__(self, on_corrupt: OnCorrupt) -> None:
        self._on_corrupt = on_corrupt
        self.count = 0
        self.left_out: Counter[str] = Counter()
        self.listed: list[tuple[str, str]] = []

    def report(self, damage: Damaged) -> None:
        """Raise the damage, or record it and let the caller leave the input out."""
        if self._on_corrupt == "error":
            raise damage
        self.count += 1
        if len(self.listed) < LISTED_DAMAGES:
            self.listed.append((damage.name, damage.reason))

    @contextmanager
    def reporting(self, name: str) -> Iterator[None]:
        """Report the damage, or the OSError at `name`, that ends the body."""
        try:
            yield
        except Damaged as damage:
            self.report(damage)
        except OSError as error:
            self.report(_unreadable(name, error))


class ByteFile(ABC):
    """Bytes that are read forward: of a file, decompressed, or one document after the other."""

    name: str

    @abstractmethod
    def read(self, size: int) -> bytes:
        """1 to `size` bytes; none only at the end.  Damaged if the file is."""

    @abstractmethod
    def close(self) -> None: ...

    def skip(self, count: int) -> int:
        """Pass over `count` bytes, or as many as there are; returns how many."""
        left = count
        while left and (data := self.read(min(left, READ_BYTES))):
            left -= len(data)
        return count - left

    def read_fully(self, count: int) -> bytes:
        """`count` bytes, fewer only if there are no more."""
        data = b""
        while len(data) < count and (more := self.read(count - len(data))):
            data += more
        return data


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

    @property
    def size(self) -> int:
        """Bytes on the disk; 0 where asking would fail or cost: unreadable files, URLs and standard input."""
        try:
            return 0 if self.name == STANDARD_INPUT or _is_url(self.name) else os.stat(self.name).st_size
        except OSError:
            return 0

    @property
    def root(self) -> str:
        """The part of the name that the user gave."""
        return self.name[: self.key_start]

    def stamp(self) -> tuple[int, str]:
        """Size, and what changes with the content: the time of the last change, or the ETag of a URL.

        Damaged if the file is not there.
        """
        with reading_of(self.name):
            if not _is_url(self.name):
                status = os.stat(self.name)
                return status.st_size, str(status.st_mtime_ns)
            file_system, path = _file_system(self.name)
            info = {name.lower().replace("_", ""): value for name, value in file_system.info(path).items()}
        return int(info.get("size") or 0), str(next((info[name] for name in _CHANGES if info.get(name)), ""))

    def open(self) -> "RawFile":
        """Open for reading from the start.  Damaged if that is not possible."""
        with reading_of(self.name):
            if self.name == STANDARD_INPUT:
                return RawFile(self.name, io.FileIO(sys.stdin.fileno(), closefd=False), size=None)
            if _is_url(self.name):
                file_system, path = _file_system(self.name)
                return RawFile(self.name, file_system.open(path, "rb"), size=file_system.size(path))
            file = io.FileIO(self.name)
            return RawFile(self.name, file, size=os.fstat(file.fileno()).st_size)


class RawFile(ByteFile):
    """The bytes of a file as they lie, exactly as many as it had when opened.

    A file that grows meanwhile is read to its old end; one that shrinks is Damaged.
    file: of the standard library or of fsspec.
    size: None if it is unknown, and the file cannot be sought in.
    """

    def __init__(self, name: str, file: Any, size: int | None) -> None:
        self.name = name
        self._file = file
        self._size = size
        self._position = 0

    def read(self, size: int) -> bytes:
        size = self._room(size)
        with reading_of(self.name):
            data: bytes = self._file.read(size)
        if not data and size and self._size is not None:
            raise Damaged(self.name, f"shrank while it was read: {self._position} of {self._size} bytes were there")
        self._position += len(data)
        return data

    def skip(self, count: int) -> int:
        if self._size is None:
            return super().skip(count)
        count = self._room(count)
        with reading_of(self.name):
            try:
                self._file.seek(count, os.SEEK_CUR)
            except (OSError, ValueError):  # some web servers give no parts of files
                return super().skip(count)
        self._position += count
        return count

    def seekable(self) -> Any:
        """The open file itself, to be read from any place.  Damaged if it can only be read forward."""
        if self._size is None:
            raise Damaged(self.name, "is a .zip, which cannot be read from a pipe; save it to a file and name that")
        return self._file

    def close(self) -> None:
        self._file.close()

    def _room(self, wanted: int) -> int:
        return wanted if self._size is None else min(wanted, self._size - self._position)


def find(paths: Sequence[str | os.PathLike[str]], skip_log: SkipLog, leave_out: LeaveOut = NO_CORPUS) -> list[Source]:
    """The files that `paths` stand for, in order: as given, folders sorted by name, globs sorted.

    Each path is a file, a folder (all its files, recursively, through symbolic links), a glob, `-` or an fsspec URL.
    Litter and outputs are left out where the user did not name the very file.  UserError if nothing is left to read.
    """
    return [source for sources in find_each(paths, skip_log, leave_out) for source in sources]


def find_each(
    paths: Sequence[str | os.PathLike[str]], skip_log: SkipLog, leave_out: LeaveOut = NO_CORPUS
) -> list[list[Source]]:
    """`find`, by path."""
    names = [os.fspath(path) for path in paths]
    if names.count(STANDARD_INPUT) > 1:
        raise UserError("- stands twice among the paths; standard input can be read only once")
    finder = _Finder(skip_log, leave_out)
    sources = [list(finder.find(name)) for name in names]
    if not any(sources):
        but = f" but what is left out: {as_text(skip_log.left_out)}" if skip_log.left_out else ""
        raise UserError(f"no file to read in {', '.join(map(repr, names)) or 'no paths'}{but}; name one that exists")
    return sources


def absolute(path: str) -> str:
    """A PATH as it is called from any folder.  A pattern below a folder with wildcards in its name stays as it is."""
    is_pattern = not os.path.lexists(path) and glob.has_magic(path)
    if path in ("", STANDARD_INPUT) or _is_url(path) or (is_pattern and glob.has_magic(os.getcwd())):
        return path
    above = "".join(path.rpartition(os.pardir)[:2])
    # What lies above a symbolic link to a folder is not what lies above its name.
    is_same = os.path.realpath(above) == os.path.realpath(os.path.abspath(above))
    whole = os.path.abspath(path) if is_same else os.path.join(os.getcwd(), path)
    return whole.rstrip(os.sep) + os.sep * path.endswith(os.sep) if path.strip(os.sep) else whole


def real_name(source: Source) -> str:
    """The same for a file however it is named or linked to; of standard input and URLs elsewhere, their name."""
    name = re.sub("^(file|local)://", "", source.name)
    if name == STANDARD_INPUT or _is_url(name):
        return name
    return "{}:{}".format(*_identity(os.stat(name)))


def spool_standard_input(path: Path) -> None:
    """Copy standard input into a file, so that it can be read again: for more epochs, and to resume."""
    with path.open("wb") as file:
        shutil.copyfileobj(sys.stdin.buffer, file, 1 << 20)


class _Finder:
    """One search: what to do with damaged paths, and what to leave out."""

    def __init__(self, skip_log: SkipLog, leave_out: LeaveOut) -> None:
        self._skip_log = skip_log
        self._leave_out = leave_out
        self._outputs: dict[str, str | None] = {}

    def find(self, name: str) -> Iterator[Source]:
        if name == STANDARD_INPUT:
            yield Source(name, 0)
            return
        with self._skip_log.reporting(name):
            found, left_out = False, self._skip_log.left_out.copy()
            for source in self._url(name) if _is_url(name) else self._local(name):
                found = True
                yield source
            if not found and self._skip_log.left_out == left_out:
                raise Damaged(name, "holds no file")

    def _local(self, name: str) -> Iterator[Source]:
        """Not by fsspec, which follows no symbolic link to a folder, and lists pipes and dangling links as files."""
        if not os.path.lexists(name) and glob.has_magic(name):
            yield from self._glob(name)
            return
        status = os.stat(name)
        if stat.S_ISDIR(status.st_mode):
            yield from self._walk(name, len(os.path.join(name, "")))
        elif not stat.S_ISREG(status.st_mode):
            raise Damaged(name, "is neither a file nor a folder; pipe it into standard input and name that as -")
        elif status.st_size == 0:
            raise Damaged(name, "is empty")
        elif not self._is_left_out(self._leave_out.pattern_of(name, os.path.basename(name))):
            yield Source(name, len(name) - len(os.path.basename(name)))

    def _glob(self, pattern: str) -> Iterator[Source]:
        """What a pattern matches, folders with all their files; `**` gives files at any depth by itself."""
        hits = sorted({*glob.glob(pattern, recursive=True)})  # two ** find a file on several ways
        if not hits:
            raise Damaged(pattern, "no such file or folder, and nothing matches it as a pattern")
        key_start = _fixed_part(pattern)
        has_every_file = "**" in pattern and os.path.basename(pattern) in ("*", "**")
        done: set[str] = set()  # folders that have been read, and loops
        for hit in hits:
            is_folder = os.path.isdir(hit)
            way = _folders_to(os.path.join(hit, "") if is_folder else hit, key_start)
            loop = _loop(way) if "**" in pattern else None
            if loop and loop not in done:
                self._skip_log.report(Damaged(loop, "is a symbolic link to a folder that holds it: a loop"))
                done.add(loop)
            if (is_folder and has_every_file) or not done.isdisjoint(way):
                continue
            if is_folder:
                done.add(way[-1])
            if not self._is_left_out(self._why(hit, key_start)):
                yield from self._walk(hit, key_start)

    def _walk(self, name: str, key_start: int, ancestors: tuple[tuple[int, int], ...] = ()) -> Iterator[Source]:
        """A file, or all files below a folder, sorted by name; each symbolic link is followed.

        Sockets, pipes and devices are left alone.
        """
        with self._skip_log.reporting(name):
            status = os.stat(name)
            if stat.S_ISREG(status.st_mode):
                yield Source(name, key_start)
            elif stat.S_ISDIR(status.st_mode):
                if _identity(status) in ancestors:
                    raise Damaged(name, "is a symbolic link to a folder that holds it: a loop")
                entries = sorted(os.listdir(name))
                if self._is_left_out(self._output(name, entries)):
                    return
                for path in (os.path.join(name, entry) for entry in entries):
                    if not self._is_left_out(self._leave_out.why(path, path[key_start:].replace(os.sep, "/"))):
                        yield from self._walk(path, key_start, (*ancestors, _identity(status)))

    def _url(self, url: str) -> Iterator[Source]:
        if "::" in url:
            raise UserError(f"{url}: URLs in a chain (::) are not read; name the inner one")
        with reading_of(url):
            file_system, path = _file_system(url)
            if glob.has_magic(path) and not file_system.exists(path):
                found = sorted(hit for hit in file_system.glob(path) if file_system.isfile(hit))
                root = path[: _fixed_part(path)]
            elif file_system.isdir(path):
                found, root = sorted(file_system.find(path)), path
            elif not file_system.exists(path):
                raise Damaged(url, "no such file or folder")
            elif file_system.size(path) == 0:
                raise Damaged(url, "is empty")
            else:
                found, root = [path], path.rpartition("/")[0]
            outputs = self._outputs_among(found, file_system) if found != [path] else {}
        for file in found:
            name = file_system.unstrip_protocol(file)
            key = file[len(root) :].lstrip("/")
            output = next((outputs[folder] for folder in _folders_above(file) if folder in outputs), None)
            why = self._leave_out.pattern_of(name, key) if file == path else self._leave_out.why_below(name, key)
            if not self._is_left_out(output or why):
                yield Source(name, len(name) - len(key))

    def _outputs_among(self, files: list[str], file_system: AbstractFileSystem) -> dict[str, str]:
        """Folders of these files that our own commands have written, and what they are."""
        entries: dict[str, list[str]] = {}
        for file in files if self._leave_out.defaults else ():
            folder, _, name = file.rpartition("/")
            entries.setdefault(folder, []).append(name)
        kinds = ((folder, output_in(names, _reader(file_system, folder))) for folder, names in entries.items())
        return {folder: f"in a {kind}" for folder, kind in kinds if kind}

    def _why(self, hit: str, key_start: int) -> str | None:
        """Why what a pattern matches is left out, or a folder that it lies in."""
        folders = _folders_to(hit, key_start)
        for folder in folders:
            if folder not in self._outputs:
                self._outputs[folder] = self._output(folder, os.listdir(folder))
        output = next((self._outputs[folder] for folder in folders if self._outputs[folder]), None)
        return f"in a {output}" if output else self._leave_out.why_below(hit, hit[key_start:].replace(os.sep, "/"))

    def _output(self, folder: str, entries: list[str]) -> str | None:
        if not self._leave_out.defaults:
            return None
        return output_in(entries, lambda name: _head(os.path.join(folder, name)))

    def _is_left_out(self, reason: str | None) -> bool:
        """Whether there is a reason, which is counted."""
        if reason:
            self._skip_log.left_out[reason] += 1
        return reason is not None


def as_text(left_out: Mapping[str, int]) -> str:
    """What was left out, for a message: `.git, 2 x run folder`."""
    return ", ".join(f"{count:,} x {what}" if count > 1 else what for what, count in sorted(left_out.items()))


def _head(path: str) -> bytes:
    """More than any output of ours has that is asked for."""
    with open(path, "rb") as file:
        return file.read(1 << 20)


def _fixed_part(pattern: str) -> int:
    """Length of the leading folders without a wildcard."""
    head = re.split(r"[*?[]", pattern, maxsplit=1)[0]
    return len(head) - len(os.path.basename(head))


def _folders_to(path: str, key_start: int) -> list[str]:
    """That a path lies in, from the pattern's fixed part on."""
    return [path[:key_start] or os.curdir, *(path[:end] for end in range(key_start, len(path)) if path[end] == os.sep)]


def _loop(folders: Sequence[str]) -> str | None:
    """The first of the folders, each in the one before, that is met twice."""
    met = [_identity(os.stat(folder)) for folder in folders]
    return next((folder for i, folder in enumerate(folders) if met[i] in met[:i]), None)


def _reader(file_system: AbstractFileSystem, folder: str) -> Callable[[str], bytes]:
    return lambda name: bytes(file_system.cat_file(f"{folder}/{name}"))


def _folders_above(file: str) -> Iterator[str]:
    while "/" in file:
        file = file.rpartition("/")[0]
        yield file


def _identity(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino


def _is_url(name: str) -> bool:
    return "://" in name


def _file_system(url: str) -> tuple[AbstractFileSystem, str]:
    try:
        file_system, path = url_to_fs(url)
    except ImportError as error:
        raise UserError(f"{url}: {error}; install the package of that protocol") from error
    except ValueError as error:
        raise UserError(f"{url}: {error}") from error
    return file_system, path


@contextmanager
def reading_of(name: str) -> Iterator[None]:
    """Whatever goes wrong is Damaged: file systems of fsspec raise their libraries' own errors."""
    try:
        yield
    except UserError:
        raise
    except OSError as error:
        raise _unreadable(name, error) from error
    except Exception as error:
        if not _is_url(name):
            raise
        raise Damaged(name, f"cannot be read: {(str(error) or type(error).__name__).splitlines()[0]}") from error


def _unreadable(name: str, error: OSError) -> Damaged:
    if error.errno == errno.ELOOP:
        return Damaged(name, "is a symbolic link that leads back to itself: a loop")
    if error.errno == errno.ENOENT:
        return Damaged(name, "is a symbolic link to nothing" if os.path.islink(name) else "no such file or folder")
    return Damaged(name, f"cannot be read: {error.strerror or error}")

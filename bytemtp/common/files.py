"""Writing files so that a kill, a full disk or a wrong path leaves nothing half done."""

import atexit
import errno
import fcntl
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any

from bytemtp.common.errors import UserError

PARTIAL = ".partial"
"""Ending of the name of whatever is not completely written yet."""


def write_file(path: Path, content: str | bytes) -> None:
    """Replace a file so that a reader, or a kill, sees all of the old text or all of the new.

    Paths in a text may be no UTF-8.  Two processes that write the same file at a time do not disturb each other.
    """
    partial = partial_of(path)
    try:
        partial.write_bytes(as_bytes(content))
        sync(partial)
        partial.replace(path)
    except OSError:
        with suppress(OSError):
            partial.unlink()
        raise
    sync(path.parent)


def partial_of(path: Path) -> Path:
    """Where this process writes a file that is to get the name `path`; other processes have other places."""
    return path.with_name(f"{path.name}.{os.getpid()}{PARTIAL}")


@contextmanager
def writing(path: Path, note: str = "") -> Iterator[None]:
    """Inside, an OSError is the UserError that every command gives for a file it cannot write.  note: added behind."""
    try:
        yield
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}{note}") from error


def write_output(path: Path, content: str | bytes, note: str = "") -> None:
    """`write_file` for a file that the user named.  UserError if it cannot be written; note: added behind.

    A link, a pipe or a device (/dev/stdout) is written through, not replaced.
    """
    with writing(path, note):
        if _replaced(path):
            write_file(path, content)
        else:
            path.write_bytes(as_bytes(content))


def write_json(path: Path, record: Mapping[str, Any], note: str = "") -> None:
    """`write_output` of an object as JSON."""
    write_output(path, json.dumps(record, indent=1) + "\n", note)


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object in a file.  UserError if it cannot be read, or holds none."""
    content = read_input(path)
    try:
        value = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is no JSON: {error}") from error
    if not isinstance(value, dict):
        raise UserError(f"{path} is no JSON object")
    return value


def as_bytes(content: str | bytes) -> bytes:
    return content if isinstance(content, bytes) else content.encode("utf-8", "surrogateescape")


def read_input(path: Path | str) -> bytes:
    """All of a file that the user named, or of standard input for "-".  UserError if it cannot be read."""
    if str(path) == "-":
        return sys.stdin.buffer.read()
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error


def check_output(path: Path | None) -> None:
    """UserError if `write_output` could not write there: to be called before the work whose result it is to keep."""
    if path is None:
        return
    with writing(path):
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        if _replaced(path):
            with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f"{path.name}.", suffix=PARTIAL):
                pass
        elif not os.access(path, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))


def _replaced(path: Path) -> bool:
    return not path.exists() or (path.is_file() and not path.is_symlink())


def sync(path: Path) -> None:
    """Wait until a file's content, or a folder's list of names, is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def cache_folder() -> Path:
    """Where what was compiled or measured on this machine is kept; a temporary folder if that cannot be written."""
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "bytemtp"
    with suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True)
    return folder if os.access(folder, os.W_OK) else _instead()


@cache
def _instead() -> Path:
    """One for the whole process: what is measured in it has to be found again, else equal draws may differ."""
    folder = tempfile.mkdtemp(prefix="bytemtp-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return Path(folder)


@contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """Inside, fill the folder that is given: it gets its name once all is on the disk, and an error takes it away.

    A folder of that name is replaced.
    """
    partial = folder.with_name(folder.name + PARTIAL)
    try:
        remove_folder(partial)
        partial.mkdir(parents=True)
        yield partial
        for path in [*partial.iterdir(), partial]:
            sync(path)
        remove_folder(folder)
        partial.rename(folder)
        sync(folder.parent)
    except Exception:
        with suppress(OSError):
            remove_folder(partial)
        raise


@contextmanager
def filling(folder: Path) -> Iterator[Path]:
    """Inside, fill the folder that is given: it becomes `folder`, if that is new, or what is in it moves there.

    An empty one stays the folder that it is: a shell may be in it, or a disk mounted there.  Whatever ends the filling
    before its time leaves nothing.
    """
    folder = folder.resolve()
    is_new = not folder.exists()
    partial = partial_of(folder if is_new else folder / folder.name)
    partial.mkdir(parents=True)
    try:
        yield partial
        for path in [*partial.iterdir(), partial]:
            sync(path)
        for path in () if is_new else [*partial.iterdir()]:
            path.rename(folder / path.name)
        if is_new:
            partial.rename(folder)
        else:
            partial.rmdir()
    except BaseException:
        with suppress(OSError):
            remove_folder(partial)
        raise
    sync(folder.parent if is_new else folder)


@contextmanager
def alone(path: Path) -> Iterator[None]:
    """Inside is one thread of one process at a time, of all that name this file, which is made."""
    with ExitStack() as stack:
        with suppress(OSError):  # a file system without locks
            fcntl.flock(stack.enter_context(path.open("w")), fcntl.LOCK_EX)
        yield


def remove_folder(path: Path) -> None:
    if path.exists():
        shutil.rmtree(path)

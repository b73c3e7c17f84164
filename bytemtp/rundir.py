"""The run folder: who may write into it, and writes that a kill cannot leave half done.

RUN/
    config.toml         resolved settings, and a [run] table: paths, device, versions, parameter count
    metrics.jsonl       one object a line (`bytemtp.progress`)
    stdin.bytes*        what came through standard input, if a PATH was `-`; its suffix tells the format
    checkpoints/        see `bytemtp.checkpoint`
    tensorboard/        with train.tensorboard
"""

import errno
import os
import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from bytemtp.compression import Peeked, decompress, sniff_compression
from bytemtp.documents import begins_as_tar
from bytemtp.errors import UserError
from bytemtp.sources import STANDARD_INPUT, Damaged, Source, spool_standard_input

PARTIAL = ".partial"
"""Ending of the name of whatever is not completely written yet."""

OURS = ("config.toml", "metrics.jsonl", "stdin.bytes*", "checkpoints", "tensorboard", "*" + PARTIAL)


def claim(run: Path, *, resume: bool, overwrite: bool) -> None:
    """UserError unless `run` is new or empty, or holds a run that the user wants continued or replaced."""
    if resume and overwrite:
        raise UserError("--resume and --overwrite exclude each other; continue the run or start anew")
    if run.exists() and not run.is_dir():
        raise UserError(f"{run} is a file; --out must name a folder")
    is_run = (run / "config.toml").exists()
    if resume and not is_run:
        raise UserError(f"nothing to resume: {run} has no config.toml; leave --resume out to start a run there")
    if is_run and _has_results(run) and not resume and not overwrite:
        raise UserError(f"{run} already holds a run; continue it with --resume or replace it with --overwrite")
    if not is_run and run.exists() and _strangers(run):
        raise UserError(f"{run} holds files that are not a run ({_strangers(run)[0]}); choose a new folder")


def clear(run: Path) -> None:
    """Delete a run, and nothing that is not part of one."""
    # The name that makes the folder a run goes last: after a kill in between, it is still one that may be replaced.
    for path in sorted(_ours(run), key=lambda path: path.name == "config.toml"):
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def on_disk(paths: Sequence[str], run: Path, *, decompress: bool) -> list[str]:
    """`paths` with `-` replaced by a file in the run folder that holds all of standard input.

    A corpus is read many times over, and again on resume; standard input can be read only once.
    """
    return [str(_spooled(run, decompress)) if path == STANDARD_INPUT else path for path in paths]


def remove_partial(run: Path) -> None:
    """Delete what a kill in the middle of writing left behind."""
    for path in [*run.glob("*" + PARTIAL), *(run / "checkpoints").glob("*" + PARTIAL)]:
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def write_file(path: Path, text: str) -> None:
    """Replace a file so that a reader, or a kill, sees all of the old text or all of the new."""
    partial = path.with_name(path.name + PARTIAL)
    partial.write_text(text, encoding="utf-8")
    sync(partial)
    partial.replace(path)
    sync(path.parent)


@contextmanager
def writing(path: Path, note: str = "") -> Iterator[None]:
    """Inside, an OSError is the UserError that every command gives for a file it cannot write.  note: added behind."""
    try:
        yield
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}{note}") from error


def write_output(path: Path, text: str, note: str = "") -> None:
    """`write_file` for a file that the user named.  UserError if it cannot be written; note: added behind.

    A link, a pipe or a device (/dev/stdout) is written through, not replaced.
    """
    with writing(path, note):
        if _replaced(path):
            write_file(path, text)
        else:
            path.write_text(text, encoding="utf-8")


def check_output(path: Path | None) -> None:
    """UserError if `write_output` could not write there: to be called before the work whose result it is to keep."""
    if path is None:
        return
    with writing(path):
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        if not _replaced(path) and not os.access(path, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        if _replaced(path):
            partial = path.with_name(path.name + PARTIAL)
            partial.touch()
            partial.unlink()


def _replaced(path: Path) -> bool:
    return not path.exists() or (path.is_file() and not path.is_symlink())


def sync(path: Path) -> None:
    """Wait until a file's content, or a folder's list of names, is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove_folder(path: Path) -> None:
    if path.exists():
        shutil.rmtree(path)


def _spooled(run: Path, decompress: bool) -> Path:
    earlier = [path for path in run.glob("stdin.bytes*") if not path.name.endswith(PARTIAL)]
    if earlier:
        return earlier[0]
    if sys.stdin.isatty():
        raise UserError("PATH is - but standard input is a terminal; pipe a corpus into it or name a file")
    partial = run / ("stdin.bytes" + PARTIAL)
    spool_standard_input(partial)
    sync(partial)
    return partial.rename(run / ("stdin.bytes" + (_suffix(partial) if decompress else "")))


def _suffix(path: Path) -> str:
    """The suffix by which the data layer will know the format, from the first bytes."""
    raw = Peeked(Source(str(path), 0).open())
    compression = sniff_compression(raw.peek(6))
    file = Peeked(decompress(raw, compression))
    try:
        is_tar = begins_as_tar(file)
    except Damaged:
        is_tar = False  # the stream will meet the same damage, and follow data.on_corrupt
    finally:
        file.close()
    return ".tar" * is_tar + (f".{compression}" if compression else "")


def _has_results(run: Path) -> bool:
    """A run that failed before its first line and checkpoint (a typing error in PATH, say) may be replaced unasked."""
    return (run / "metrics.jsonl").exists() or (run / "checkpoints" / "latest").exists()


def _ours(run: Path) -> set[Path]:
    return {path for pattern in OURS for path in run.glob(pattern)}


def _strangers(run: Path) -> list[str]:
    return sorted(path.name for path in set(run.iterdir()) - _ours(run))

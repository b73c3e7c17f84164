"""The run folder: who may write into it, and standard input kept in it.

RUN/
    lock                the process that trains here, and a lock that ends with it
    config.toml         resolved settings, and a [run] table: paths, device, versions, parameter count
    metrics.jsonl       one object a line (`bytemtp.training.progress`)
    corpus.jsonl        the files of the corpus as they were when it began (`bytemtp.training.corpus`)
    stdin.bytes*        what came through standard input, if a PATH was `-`; its suffix tells the format
    train.index         with --index: the files that it was trained on, for copied drafts (`bytemtp.index`)
    checkpoints/        see `bytemtp.model.checkpoint`
    tensorboard/        with train.tensorboard
    report.png          of `python -m bytemtp.report`
"""

import fcntl
import os
import platform
import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from bytemtp.common.errors import UserError
from bytemtp.common.files import PARTIAL, remove_folder, sync, writing
from bytemtp.common.runtime import log
from bytemtp.common.settings import DataConfig
from bytemtp.data.documents import sniff_suffix
from bytemtp.data.leave_out import is_run_config
from bytemtp.data.sources import STANDARD_INPUT, spool_standard_input
from bytemtp.model.checkpoint import step_folders

LOCK = "lock"
"""Stays when a run is replaced: two processes with a file each of that name would both have their lock."""
OURS = (
    "config.toml",
    "metrics.jsonl",
    "corpus.jsonl",
    "stdin.bytes*",
    "train.index",
    "checkpoints",
    "tensorboard",
    "report.png",
    "*" + PARTIAL,
)
INCOMING = "stdin" + PARTIAL
"""Folder of standard input that is not yet part of the run."""


def claim(run: Path, *, resume: bool, overwrite: bool) -> None:
    """UserError unless `run` is new or empty, or holds a run that the user wants continued or replaced."""
    if resume and overwrite:
        raise UserError("--resume and --overwrite exclude each other; continue the run or start anew")
    if run.exists() and not run.is_dir():
        raise UserError(f"{run} is a file; --out must name a folder")
    config = run / "config.toml"
    if resume and not config.exists():
        raise UserError(f"nothing to resume: {run} has no config.toml; leave --resume out to start a run there")
    is_run = config.is_file() and is_run_config(config.read_bytes())
    if is_run and _has_results(run) and not resume and not overwrite:
        raise UserError(f"{run} already holds a run; continue it with --resume or replace it with --overwrite")
    if not is_run and not resume and run.exists() and (strangers := _strangers(run)):
        raise UserError(f"{run} holds files that are not a run ({strangers[0]}); choose a new folder")


def check_outside(run: Path, paths: Sequence[str]) -> None:
    """UserError if a PATH lies in the run folder, which is to be cleared."""
    for path in (path for path in paths if path != STANDARD_INPUT and "://" not in path):
        if Path(path).resolve().is_relative_to(run.resolve()):
            raise UserError(
                f"{path} lies in --out {run}, which is to be written; copy it elsewhere, or choose another --out"
            )


@contextmanager
def locked(run: Path) -> Iterator[None]:
    """Inside, no other process trains in `run`, which is made if need be; a kill ends that, too.

    UserError if one does, with its number.
    """
    with writing(run / LOCK):
        run.mkdir(parents=True, exist_ok=True)
        file = (run / LOCK).open("a+b", buffering=0)
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            holder = file.read().decode(errors="replace").strip()
            raise UserError(
                f"{run} is in use by process {holder}; wait for its end, stop it, or choose another --out"
            ) from None
        except OSError as error:
            log(f"warning: {run} cannot be locked ({error.strerror}); let no second process train there")
        with writing(run / LOCK):
            file.truncate(0)
            file.write(f"{os.getpid()} on {platform.node()}\n".encode())
        yield


def clear(run: Path) -> None:
    """Delete a run, and nothing that is not part of one; the standard input of a new one takes its place."""
    # The name that makes the folder a run goes last: after a kill in between, it is still one that may be replaced.
    incoming = run / INCOMING
    for path in sorted(_ours(run) - {incoming}, key=lambda path: path.name == "config.toml"):
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    if incoming.is_dir():
        for path in incoming.iterdir():
            path.rename(run / path.name)
        incoming.rmdir()


@contextmanager
def incoming(run: Path, paths: Sequence[str], data: DataConfig) -> Iterator[list[str]]:
    """`paths` with `-` replaced by a file in the run folder that holds all of standard input.

    It lies apart from an old run, until `clear` has taken that away; an error inside takes the new file away.
    """
    folder = run / INCOMING
    remove_folder(folder)
    try:
        yield [str(_spool(folder, data)) if path == STANDARD_INPUT else path for path in paths]
    except BaseException:
        remove_folder(folder)
        raise


def on_disk(paths: Sequence[str], run: Path) -> list[str]:
    """`paths` with `-` replaced by the file in the run folder that holds all of standard input.

    A corpus is read many times over, and again on resume; standard input can be read only once.
    """
    kept = [str(path) for path in run.glob("stdin.bytes*") if not path.name.endswith(PARTIAL)]
    if STANDARD_INPUT in paths and not kept:
        raise UserError(f"{run} was trained on standard input, but its copy of that, {run / 'stdin.bytes'}, is gone")
    return [kept[0] if path == STANDARD_INPUT else path for path in paths]


def remove_partial(run: Path) -> None:
    """Delete what a kill in the middle of writing left behind."""
    for path in [*run.glob("*" + PARTIAL), *(run / "checkpoints").glob("*" + PARTIAL)]:
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def _spool(folder: Path, data: DataConfig) -> Path:
    if sys.stdin.isatty():
        raise UserError("PATH is - but standard input is a terminal; pipe a corpus into it or name a file")
    path = folder / "stdin.bytes"
    with writing(path, "; make room, and pipe standard input in again"):
        folder.mkdir(parents=True)
        spool_standard_input(path)
        sync(path)
        return path.rename(path.with_name(path.name + (sniff_suffix(path, data.text_field) if data.decompress else "")))


def _has_results(run: Path) -> bool:
    """A run that failed before its first line and checkpoint (a typing error in PATH, say) may be replaced unasked."""
    return (run / "metrics.jsonl").exists() or bool(step_folders(run))


def _ours(run: Path) -> set[Path]:
    return {path for pattern in OURS for path in run.glob(pattern)}


def _strangers(run: Path) -> list[str]:
    """What is not left of a run that has no config.toml, because a kill came before that was written."""
    ours = {run / LOCK, *run.glob("*" + PARTIAL), *run.glob("stdin.bytes*")}
    return sorted(path.name for path in run.iterdir() if path not in ours)

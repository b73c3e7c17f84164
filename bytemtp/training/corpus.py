"""What a run's files were when it began: their sizes and times are kept in RUN/corpus.jsonl, and compared on resume.

A line is {"file", "size": bytes, "modified": time in ns or ETag of a URL}, and "held_out" for data.valid_paths.

Try:  python -c "from bytemtp.training.corpus import *; from bytemtp.common.settings import *
      print(files_of(Settings(), ['README.md']))"
"""

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from bytemtp.common.errors import UserError
from bytemtp.common.files import write_output
from bytemtp.common.jsonl import line_of
from bytemtp.common.runtime import log
from bytemtp.common.settings import Settings
from bytemtp.data.sources import STANDARD_INPUT, Damaged, SkipLog, Source, find
from bytemtp.training.batches import sources_of

Record = dict[str, Any]
FILES = "corpus.jsonl"


def files_of(settings: Settings, paths: Sequence[str]) -> list[bytes]:
    """A line for each file of a run as it is now.  Standard input is none of them: it is kept in the run itself."""
    named = [path for path in paths if path != STANDARD_INPUT]
    ignored = SkipLog("skip")
    training = sources_of(settings, named, ignored) if named else []
    held_out = find(settings.data.valid_paths, ignored) if settings.data.valid_paths else []
    return [*(_line(source) for source in training), *(_line(source, held_out=True) for source in held_out)]


def write_files(run: Path, files: Sequence[bytes]) -> None:
    write_output(run / FILES, b"".join(files))


@dataclass(frozen=True)
class Change:
    """What has happened to the files of a run since it began."""

    moved: bool = False
    """some have come, gone or got another size: places in them mean nothing"""
    held_out: bool = False
    """what is validated on may be other data, with which earlier validations cannot be compared"""


UNCHANGED = Change()


def change_of(run: Path, settings: Settings, files: Sequence[bytes]) -> Change:
    """What has happened to the files of a run, which are these now.

    UserError if anything about them has changed and `data.on_change` does not let that pass, and where it cannot be
    told.
    """
    path = run / FILES
    # A run of an older version has no such file.
    before = path.read_bytes().splitlines(keepends=True) if path.exists() else files
    if set(before) == set(files):
        return UNCHANGED
    try:
        old, new = _by_name(set(before) - set(files)), _by_name(set(files) - set(before))
        what = f"the data is not what the run began with: {_change(old, new)}"
        moved = _sizes(before) != _sizes(files)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f"{path} is damaged ({error!r}); delete it to go on without comparing the files") from None
    if settings.data.on_change == "error":
        raise UserError(f"{what}; restore it, or go on all the same with --data.on-change warn")
    log(f"warning: {what}; going on with {'the next epoch of ' if moved else ''}the files as they are now")
    changed = (*old.values(), *new.values())
    return Change(moved, not settings.data.valid_paths or any("held_out" in file for file in changed))


def _line(source: Source, **more: bool) -> bytes:
    try:
        size, modified = source.stamp()
    except Damaged:
        size, modified = 0, "unreadable"
    return line_of({"file": source.key, "size": size, "modified": modified, **more})


def _sizes(lines: Sequence[bytes]) -> Counter[tuple[Any, ...]]:
    """Of all files: those of several PATHs may have one name."""
    files = map(json.loads, lines)
    return Counter((file["file"], file["size"], "held_out" in file) for file in files)


def _by_name(lines: set[bytes]) -> dict[str, Record]:
    files = map(json.loads, sorted(lines))
    return {f"{file['file']}{' (held out)' * ('held_out' in file)}": file for file in files}


def _change(old: dict[str, Record], new: dict[str, Record]) -> str:
    """The first of the files that have changed, how, and how many others there are."""
    more = len(old | new) - 1
    return next(_changes(old, new)) + (f" (and {more:,} more changed files)" if more else "")


def _changes(old: dict[str, Record], new: dict[str, Record]) -> Iterator[str]:
    yield from (f"{name} is gone" for name in old if name not in new)
    yield from (f"{name} is new" for name in new if name not in old)
    for name, file in new.items():
        before = old[name]
        if file["size"] != before["size"]:
            yield f"{name} has {file['size']:,} bytes, and had {before['size']:,}"
        else:
            yield f"{name} was written again ({_when(file['modified'])}, before: {_when(before['modified'])})"


def _when(modified: str) -> str:
    if not modified.isdecimal():
        return modified
    with suppress(ValueError, OverflowError, OSError):  # a server's tag may be all digits, too
        return datetime.fromtimestamp(int(modified) / 1e9).isoformat(" ", "seconds")
    return modified

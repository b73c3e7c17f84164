"""What a run's files were when it began: their sizes and times are kept in RUN/corpus.jsonl, and compared on resume.

A line is {"file", "size": bytes, "modified": time in ns or ETag of a URL}, and "held_out" for data.valid_paths.

Try:  python -c "from bytemtp.training.corpus import *; from bytemtp.common.settings import *
      print(files_of(Settings(), ['README.md']))"
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from bytemtp.common.errors import UserError
from bytemtp.common.files import write_file
from bytemtp.common.jsonl import line_of, read_lines
from bytemtp.common.runtime import log
from bytemtp.common.settings import Settings
from bytemtp.data.sources import STANDARD_INPUT, Damaged, SkipLog, Source, find
from bytemtp.training.batches import sources_of

Record = dict[str, Any]
FILES = "corpus.jsonl"


def files_of(settings: Settings, paths: Sequence[str]) -> list[Record]:
    """The files of a run as they are now.  Standard input is none of them: it is kept in the run itself."""
    named = [path for path in paths if path != STANDARD_INPUT]
    log = SkipLog("skip")
    training = sources_of(settings, named, log) if named else []
    held_out = find(settings.data.valid_paths, log) if settings.data.valid_paths else []
    return [*map(_record, training), *(_record(source) | {"held_out": True} for source in held_out)]


def write_files(run: Path, files: Sequence[Record]) -> None:
    write_file(run / FILES, b"".join(map(line_of, files)).decode())


def has_moved(run: Path, settings: Settings, files: Sequence[Record]) -> bool:
    """Whether files have come, gone or got another size since the run began: then places in them mean nothing.

    UserError if anything about them has changed and `data.on_change` does not let that pass.
    """
    before = read_lines(run / FILES)
    if not before and not (run / FILES).exists():
        return False  # a run of an older version
    changes = list(_changes(before, files))
    if not changes:
        return False
    more = f" (and {len(changes) - 1:,} more changes)" if len(changes) > 1 else ""
    what = f"the data is not what the run began with: {changes[0]}{more}"
    if settings.data.on_change == "error":
        raise UserError(f"{what}; restore it, or go on all the same with --data.on-change warn")
    moved = [(file["file"], file["size"]) for file in before] != [(file["file"], file["size"]) for file in files]
    log(f"warning: {what}; going on with {'the next epoch of ' if moved else ''}the files as they are now")
    return moved


def _record(source: Source) -> Record:
    try:
        size, modified = source.stamp()
    except Damaged:
        size, modified = 0, "unreadable"
    return {"file": source.key, "size": size, "modified": modified}


def _changes(before: Sequence[Record], now: Sequence[Record]) -> Iterator[str]:
    """What has changed, a line a file."""
    names, later = (Counter(map(_name, files)) for files in (before, now))
    yield from (f"{name} is gone" for name in names - later)
    yield from (f"{name} is new" for name in later - names)
    if names == later:
        for old, new in zip(sorted(before, key=_name), sorted(now, key=_name), strict=True):
            if old["size"] != new["size"]:
                yield f"{_name(new)} has {new['size']:,} bytes, and had {old['size']:,}"
            elif old["modified"] != new["modified"]:
                yield f"{_name(new)} was written again ({_when(new['modified'])}, before: {_when(old['modified'])})"


def _name(file: Record) -> str:
    return f"{file['file']}{' (held out)' * ('held_out' in file)}"


def _when(modified: str) -> str:
    if not modified.isdigit():
        return modified
    return datetime.fromtimestamp(int(modified) / 1e9).isoformat(" ", "seconds")

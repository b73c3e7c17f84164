"""Command: make an index of files, for drafts that are copied from them.  `bytemtp.train --index` makes one of a run's.

python -m bytemtp.index PATH --out FILE
"""

import glob
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from bytemtp.common.cli import run, run_main
from bytemtp.common.errors import UserError
from bytemtp.common.files import check_output
from bytemtp.common.runtime import byte_progress, log
from bytemtp.common.settings import load_settings
from bytemtp.data.documents import Reading
from bytemtp.data.rows import IdStream, Position
from bytemtp.data.sources import SkipLog, absolute, as_text, find
from bytemtp.decoding.corpus_index import MAX_BYTES, RUN_INDEX, write_index
from bytemtp.training.batches import sources_of, training_split
from bytemtp.training.run_folder import on_disk

LIMIT = 1 << 25
"""Bytes of an index, unless the user wants others."""


@dataclass(frozen=True)
class Command:
    """Make an index of files: what the model writes is then drafted from what followed the same bytes there.

    An example:

        python -m bytemtp.index src docs corpus.tar.zst --out corpus.index
        python -m bytemtp.generate runs/demo --prompt "def " --max-bytes 200 --mode copy --index corpus.index

    Take text of the kind that will be decoded; that the run was trained on it does no harm.  Files are opened as for
    training: .zst .gz .xz .bz2 .tar .zip and .jsonl are decompressed.  An index changes the speed of decoding, never
    the output.  It has five bytes for each byte of text; making it takes some 70 bytes of memory for each.
    """

    paths: Annotated[tyro.conf.Positional[tuple[str, ...]], tyro.conf.arg(metavar="PATH [PATH ...]")]
    """what to index: files, folders, globs, - for standard input, fsspec URLs"""
    out: Path
    """file to write; an older one is replaced once the new one is complete"""
    bytes: int = LIMIT
    """take so many bytes at most, from the front of the files"""
    text_field: str = "text"
    """of a .jsonl file's lines: where the text is"""
    exclude: tuple[str, ...] = ()
    """patterns of files and folders to leave out, such as *.log or build, beside .git, .DS_Store and the like"""

    def main(self) -> None:
        if not self.paths:
            raise UserError("no PATH given; name the files to index, or - for standard input")
        if not 1 <= self.bytes <= MAX_BYTES:
            raise UserError(f"bytes is {self.bytes}; it must be from 1 to {MAX_BYTES}")
        # The target of a link is replaced, too, and not overwritten: a reader may have the old file mapped.
        out = self.out.resolve() if self.out.is_symlink() and self.out.is_file() else self.out
        check_output(out)
        older = (glob.escape(os.path.abspath(path)) for path in (self.out, out))
        reading, skip_log = Reading(self.text_field, exclude=(*self.exclude, *older)), SkipLog("error")
        sources = find([*map(absolute, self.paths)], skip_log, reading.leave_out)  # as `older` is
        log(write(out, IdStream(sources, skip_log, shuffle=False, reading=reading), self.bytes))


def index_run(run: Path) -> str:
    """Make RUN/train.index of what a run was trained on, without what it held out; returns a line about it.

    UserError if the files are gone, or cannot be read any more.
    """
    settings, info = load_settings(run / "config.toml")
    data, skip_log = settings.data, SkipLog(settings.data.on_corrupt)
    split, fraction = training_split(data)
    reading = Reading(data.text_field, data.decompress, data.format, data.exclude)
    sources = sources_of(settings, on_disk(info["paths"], run), skip_log)
    stream = IdStream(sources, skip_log, shuffle=False, split=split, valid_fraction=fraction, reading=reading)
    return write(run / RUN_INDEX, stream, LIMIT)


def write(path: Path, stream: IdStream, limit: int) -> str:
    """Make an index of `limit` bytes of a stream at most; returns a line about it."""
    begun = time.perf_counter()
    documents = list(documents_of(stream, limit))
    size = sum(map(len, documents))
    log(f"sorting {size:,} bytes")
    write_index(path, documents)
    kept = f"{size:,} bytes of {len(documents):,} documents in {path.stat().st_size:,} bytes"
    return f"written: {path} ({kept}, {time.perf_counter() - begun:.1f} s)"


def documents_of(stream: IdStream, limit: int) -> Iterator[bytes]:
    """Those that have a byte, in order, `limit` bytes of them at most; says what is left out.

    UserError as from `bytemtp.stream` for files that cannot be read, or hold no byte.
    """
    sources, left_out = stream.sources, stream.skip_log.left_out
    document, room = bytearray(), limit
    with byte_progress("read") as bar:
        for position, octets in stream.read(Position(), 1):
            document += octets[:room]
            if document and (not octets or len(octets) > room):
                yield bytes(document)
                document.clear()
            if len(octets) > room:
                more = len(sources) - position.file - 1
                rest = f"the rest of {sources[position.file].name}"
                if more:
                    rest += f" and {more:,} more file{'s' * (more > 1)}"
                log(f"warning: {limit:,} bytes are taken, the limit; left out: {rest}")
                break
            room -= len(octets)
            bar.update(len(octets))
    for name, reason in stream.skip_log.listed:
        log(f"left out: {name}: {reason}")
    if left_out:
        log(f"left out: {as_text(left_out)}")


def main(arguments: Sequence[str] | None = None) -> None:
    run(Command, "python -m bytemtp.index", arguments)


if __name__ == "__main__":
    run_main(main)

"""Files of JSON objects, a line each, that grow and that a killed process leaves whole but for their last line."""

import codecs
import json
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bytemtp.common.errors import UserError


class JsonLinesFile:
    """Such a file, to go on with: what a kill or a full disk left of a last line is taken off by the first `append`."""

    def __init__(self, path: Path) -> None:
        """UserError for a file that is none, or a place that cannot be written to."""
        self.path = path
        self.records = read_lines(path)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("ab"):
                data = path.read_bytes()
        except OSError as error:
            raise UserError(f"cannot write to {path}: {error.strerror}") from error
        self._ends = [end for line, end in _whole_lines(data) if line.strip()]
        whole = data.rfind(b"\n") + 1
        self._cut_at = whole if whole < len(data) else None

    def keep(self, count: int) -> None:
        """Have the records after the first `count` taken off by the first `append`, too; until then they stay."""
        if count < len(self._ends):
            self._cut_at = self._ends[count - 1] if count else 0

    def append(self, records: Iterable[dict[str, Any]]) -> None:
        """UserError if they cannot be written; those before them stay."""
        text = b"".join(map(line_of, records))
        try:
            with self.path.open("ab") as file:
                if self._cut_at is not None:
                    file.truncate(self._cut_at)
                    self._cut_at = None
                file.write(text)
        except OSError as error:
            raise UserError(
                f"cannot write {self.path}: {error.strerror}; what is in it is kept: make room and run the same again"
            ) from error


def line_of(record: dict[str, Any]) -> bytes:
    with any_digits():
        return (json.dumps(record) + "\n").encode()


def append_json_line(path: Path, record: dict[str, Any]) -> None:
    """Append one object to a file and flush it, so that a reader (or a kill) sees whole lines."""
    with path.open("ab") as file:
        file.write((json.dumps(record, allow_nan=False) + "\n").encode())  # nan is no JSON


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The whole lines of a .jsonl file but blank ones; none if there is no file.  UserError for one that is no JSON."""
    try:
        data = path.read_bytes() if path.exists() else b""
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    try:
        with any_digits():
            return [json.loads(line) for line, _ in _whole_lines(data) if line.strip()]
    except ValueError as error:
        raise UserError(f"{path} has a line that is no JSON: {error}; take it out or choose another folder") from error


def _whole_lines(data: bytes) -> Iterator[tuple[bytes, int]]:
    """Each line, without its end and a byte order mark, and where the next one begins."""
    end = 0
    for line in data.split(b"\n")[:-1]:
        end += len(line) + 1
        yield line.removeprefix(codecs.BOM_UTF8), end


@contextmanager
def any_digits() -> Iterator[None]:
    """Whole numbers of any length are read and written inside; Python's own limit is 4300 digits."""
    limit = sys.get_int_max_str_digits()
    sys.set_int_max_str_digits(0)
    try:
        yield
    finally:
        sys.set_int_max_str_digits(limit)

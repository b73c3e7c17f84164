"""What lies among the files of a corpus and is none of them: litter, what our own commands wrote, what is held out.

Try:  python -c "from bytemtp.data.leave_out import *; print(LeaveOut(('*.log',)).why_below('', 'src/.git/HEAD'))"
"""

import glob
import json
import os
import re
import tomllib
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase, translate
from typing import Any

from bytemtp.common.files import PARTIAL
from bytemtp.common.vocab import VOCAB_SIZE

LITTER = (
    ".git", ".hg", ".svn", ".DS_Store", "._*", "__MACOSX", "Thumbs.db", "desktop.ini", "lost+found",
    "__pycache__", ".ipynb_checkpoints", "*" + PARTIAL,
)  # fmt: skip
"""Names that version control, operating systems, Python and unfinished writing leave in folders."""
HELD_OUT = "held out by data.valid_paths"

_LITTER = re.compile("|".join(map(translate, LITTER)))
_LITTER_BELOW = re.compile("|".join(re.escape(name.strip("*")) for name in LITTER))
"""In every path with litter in it, and in few others."""


@dataclass(frozen=True)
class LeaveOut:
    """Which files and folders below a folder, a pattern or in an archive are left out.

    A pattern without / is one of names at any depth.  One with / is one of paths: those relative to the PATH that the
    user gave, or the ends of whole ones.  `*` also goes across /.
    """

    patterns: tuple[str, ...] = ()
    """the user's (`data.exclude`)"""
    defaults: bool = True
    """whether litter and outputs are left out"""
    held_out: frozenset[str] = frozenset()
    """absolute paths, or URLs, of files and folders"""

    def why(self, path: str, key: str) -> str | None:
        """The pattern or reason for which a file or folder is left out, whatever it lies in; None if it is not.

        key: its path relative to what the user named, or in its archive.
        """
        name = key.rpartition("/")[2]
        if self.defaults and _LITTER.match(name):
            return next(pattern for pattern in LITTER if fnmatchcase(name, pattern))
        if self.held_out and _whole(path) in self.held_out:
            return HELD_OUT
        return self.pattern_of(path, key)

    def why_below(self, path: str, key: str) -> str | None:
        """The same for a file, or for any folder between it and what the user named."""
        if not (self.patterns or self.held_out or (self.defaults and _LITTER_BELOW.search(key))):
            return None
        ends = [place for place, letter in enumerate(key) if letter == "/"] + [len(key)]
        cut = len(path) - len(key)
        return next(filter(None, (self.why(path[: cut + end], key[:end]) for end in ends)), None)

    def pattern_of(self, path: str, key: str) -> str | None:
        """The user's pattern that a path matches."""
        return next((pattern for pattern in self.patterns if _matches(pattern, path, key)), None)


NO_CORPUS = LeaveOut()
"""Litter and outputs."""


def _matches(pattern: str, path: str, key: str) -> bool:
    whole = pattern.removeprefix("./").removesuffix("**").rstrip("/")
    while whole.startswith("**/"):
        whole = whole[3:]
    if "/" not in whole:
        return fnmatchcase(key.rpartition("/")[2], whole)
    return fnmatchcase(key, whole) or fnmatchcase(path, whole) or fnmatchcase(path, "*/" + whole.lstrip("/"))


def held_out_paths(paths: Sequence[str]) -> frozenset[str]:
    """What `data.valid_paths` names, as `LeaveOut.held_out` wants it."""
    hits = [hit for path in paths for hit in ([path] if os.path.lexists(path) else glob.glob(path, recursive=True))]
    return frozenset(map(_whole, [*hits, *paths]))


def _whole(path: str) -> str:
    """One spelling of a path; of a URL, too, which fsspec writes with three slashes or two."""
    return re.sub("://+", "://", path.rstrip("/")) if "://" in path else os.path.abspath(path)


def output_in(entries: Collection[str], read: Callable[[str], bytes]) -> str | None:
    """What of our own commands' output a folder with these entries is; None if it is none.

    read: the content of an entry.  One that cannot be read is no output of ours.
    """
    names = set(entries)

    def text(name: str) -> bytes:
        try:
            return read(name)
        except OSError:
            return b""

    if "config.toml" in names and is_run_config(text("config.toml")):
        return "run folder"
    if "lock" in names and names <= _BEGINNING:
        return "run folder"
    if {"model.safetensors", "state.json"} <= names:
        return "checkpoint"
    if {"model.safetensors", "config.json"} <= names and _object(text("config.json")).get("vocab_size") == VOCAB_SIZE:
        return "exported model"
    if any(name in names and {"problems", "samples"} <= _object(text(name)).keys() for name in _PASSK):
        return "folder of judged samples"
    return None


def is_run_config(text: bytes) -> bool:
    """Whether a config.toml is that of a run."""
    try:
        tables = tomllib.loads(text.decode("utf-8", "surrogateescape"))
    except (ValueError, RecursionError):
        return False
    return all(isinstance(tables.get(name), dict) for name in ("model", "train", "run"))


def _object(text: bytes) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


_BEGINNING = {"lock", "stdin" + PARTIAL}
"""All that there is in the folder of a run that is about to begin."""
_PASSK = ("settings.json", "summary.json")

"""Corpora that an experiment makes itself: texts as lines of JSON, which bytemtp.train reads as a document each."""

import json
from collections.abc import Iterable
from pathlib import Path
from threading import Lock

import zstandard

from bytemtp.common.files import partial_of, writing

_writing = Lock()


def written_once(path: Path, texts: Iterable[str]) -> Path:
    """`path` (.jsonl.zst), with these texts unless it is there already; cells that run side by side wait for it.

    The texts need not fit into memory, and a kill leaves no half of a file.
    """
    with _writing, writing(path):
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            partial = partial_of(path)
            with zstandard.open(partial, "wt", encoding="utf-8") as file:
                file.writelines(json.dumps({"text": text}) + "\n" for text in texts)
            partial.replace(path)
    return path

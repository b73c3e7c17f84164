"""What an experiment makes itself: texts to train on, as lines of JSON, of which each is a document; and questions."""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from threading import Lock

import zstandard

import bytemtp
from bytemtp.common.files import partial_of, writing

AT_A_TIME = 250
"""Questions."""
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


def answers(model: bytemtp.ByteMTP, prompts: Sequence[str], length: int) -> list[bytes]:
    """What the model writes greedily after each prompt, so many bytes."""
    octets = [prompt.encode() for prompt in prompts]
    batches = [octets[i : i + AT_A_TIME] for i in range(0, len(octets), AT_A_TIME)]
    return [one.data for batch in batches for one in bytemtp.generate_batch(model, batch, length)]

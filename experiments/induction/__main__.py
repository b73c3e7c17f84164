"""Do heads teach a small model to copy a name that it has just read?  See README.md.

Settings that begin with story. say how many stories are trained on (count) and scored (heldout).  A preset with files
`train` and `heldout`, in the form of TinyStories, takes its stories from there and needs no count.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any
from zlib import crc32

from bytemtp.common.cli import run_main
from experiments.documents import written_once
from experiments.grid import RUNS, Cell, Experiment, main, train_along
from experiments.induction.report import draw, table
from experiments.induction.scoring import scores
from experiments.induction.stories import Story, stories
from experiments.induction.tinystories import read_stories, renamed_stories

TRAIN_SEED, HELDOUT_SEED = 0, 1
"""Of the stories, the same for all cells; --seeds are those of the weights and of the order."""


def score(cell: Cell) -> dict[str, Any]:
    """Figures of every checkpoint (`way`), and those of the last one by themselves."""
    heldout = heldout_of(cell)
    return train_along(cell, corpus(cell), lambda model: scores(model, heldout))


def heldout_of(cell: Cell) -> list[Story]:
    """With names that no story of the training has."""
    count = cell.settings["story.heldout"]
    if "heldout" in cell.options:
        return renamed_stories(cell.options["heldout"], count, HELDOUT_SEED)
    return list(stories(count, HELDOUT_SEED, heldout=True))


def corpus(cell: Cell) -> Path:
    """The file to train on, a document a story.  Its name tells other stories, or other files, apart."""
    texts: Iterable[str]
    if "train" in cell.options:
        path = Path(cell.options["train"]).resolve()
        texts, name, origin = read_stories(path), path.stem, bytes(path)
    else:
        texts = [story.text for story in stories(cell.settings["story.count"], TRAIN_SEED, heldout=False)]
        name, origin = "stories", "".join(texts).encode()
    return written_once(RUNS / cell.experiment / "data" / f"{name}-{crc32(origin):08x}.jsonl.zst", texts)


EXPERIMENT = Experiment("induction", score, table, draw)

if __name__ == "__main__":
    run_main(lambda: main(EXPERIMENT))

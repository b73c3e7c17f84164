"""Do heads hurt recall and help reasoning?  See README.md.

Settings that begin with world. say how many documents are trained on and how many questions of each kind are asked.  A
preset with files of published questions trains on `train` and asks those: multiple choice (tasks, with labels where
answers are in files of their own) and open questions (answers).  `accuracy` names how choices are scored.
"""

from pathlib import Path
from typing import Any

import bytemtp
from bytemtp.common.cli import run_main
from bytemtp.common.runtime import pick_device
from bytemtp.evaluation.answers import Question, ask, read_questions
from bytemtp.evaluation.choice import answer
from bytemtp.evaluation.tasks import Task, read_tasks
from bytemtp.model.checkpoint import step_folders
from experiments.choice_tasks import world
from experiments.choice_tasks.report import draw, table
from experiments.documents import written_once
from experiments.grid import RUNS, Cell, Experiment, main, train

TRAIN_SEED, TEST_SEED = 0, 1
"""Of the world's documents and questions, the same for all cells; --seeds are those of the weights and of the order."""


def score(cell: Cell) -> dict[str, Any]:
    """Accuracy at every checkpoint (`way`), and at the last one by itself."""
    asked = questions(cell)
    trained = train(cell, corpus(cell))
    way = [score_checkpoint(folder, asked, cell.options["accuracy"]) for folder in step_folders(cell.folder)]
    return trained | way[-1] | {"way": way}


def questions(cell: Cell) -> dict[str, list[Task] | list[Question]]:
    """By kind, or by the name of a benchmark."""
    options = cell.options
    if "tasks" not in options:
        count = cell.settings["world.questions"]
        return {kind: world.tasks(kind, count, TEST_SEED) for kind in world.KINDS}
    labels = {name: Path(path) for name, path in options["labels"].items()}
    choices = {name: read_tasks(Path(path), labels=labels.get(name)) for name, path in options["tasks"].items()}
    return choices | {name: read_questions(Path(path)) for name, path in options["answers"].items()}


def corpus(cell: Cell) -> Path:
    """What to train on; of the world's documents, the file that they are written to."""
    if "train" in cell.options:
        return Path(cell.options["train"])
    count = cell.settings["world.documents"]
    path = RUNS / cell.experiment / "data" / f"{count}-of-{world.PEOPLE}-people.jsonl.zst"
    return written_once(path, world.documents(count, TRAIN_SEED))


def score_checkpoint(folder: Path, asked: dict[str, list[Task] | list[Question]], accuracy: str) -> dict[str, Any]:
    """Shares of right answers, from 0 to 1."""
    model = bytemtp.load(folder, pick_device().value)
    step = {"step": int(folder.name.removeprefix("step-"))}
    return step | {name: right(model, of_kind, accuracy) for name, of_kind in asked.items()}


def right(model: bytemtp.ByteMTP, asked: list[Task] | list[Question], accuracy: str) -> float:
    """accuracy: of choices, by its name in `evaluate choice`.  Open questions are scored by exact match."""
    choices = [one for one in asked if isinstance(one, Task)]
    if choices:
        return float(answer(model, choices).as_dict()[accuracy])
    return float(ask(model, [one for one in asked if isinstance(one, Question)]).as_dict()["exact_match"])


EXPERIMENT = Experiment("choice_tasks", score, table, draw)

if __name__ == "__main__":
    run_main(lambda: main(EXPERIMENT))

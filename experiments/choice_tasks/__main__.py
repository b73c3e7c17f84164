"""Do heads hurt recall and help reasoning?  See README.md.

Settings that begin with world. say how many documents are trained on and how many questions of each kind are asked.  A
preset with files of published questions trains on `train` and asks those: multiple choice (tasks, with labels where
answers are in files of their own) and open questions (answers).  `accuracy` names how choices are scored.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import bytemtp
from bytemtp.common.cli import run_main
from bytemtp.evaluation.answers import Question, ask, read_questions
from bytemtp.evaluation.choice import answer
from bytemtp.evaluation.tasks import Task, read_tasks
from experiments.choice_tasks import world
from experiments.choice_tasks.report import draw, table
from experiments.documents import written_once
from experiments.grid import RUNS, Cell, Experiment, main, train_along

Test = Callable[[bytemtp.ByteMTP], float]
"""Asks a model: the share of right answers, from 0 to 1."""
TRAIN_SEED, TEST_SEED = 0, 1
"""Of the world's documents and questions, the same for all cells; --seeds are those of the weights and of the order."""


def score(cell: Cell) -> dict[str, Any]:
    """Accuracy at every checkpoint (`way`), and at the last one by itself."""
    tests = tests_of(cell)
    return train_along(cell, corpus(cell), lambda model: {name: test(model) for name, test in tests.items()})


def tests_of(cell: Cell) -> dict[str, Test]:
    """By kind of the world's questions, or by the name of a benchmark."""
    options = cell.options
    accuracy = options["accuracy"]
    if "tasks" not in options:
        count = cell.settings["world.questions"]
        return {kind: choices(world.tasks(kind, count, TEST_SEED), accuracy) for kind in world.KINDS}
    labels = {name: Path(path) for name, path in options["labels"].items()}
    tasks = {name: read_tasks(Path(path), labels=labels.get(name)) for name, path in options["tasks"].items()}
    questions = {name: read_questions(Path(path)) for name, path in options["answers"].items()}
    closed = {name: choices(of_name, accuracy) for name, of_name in tasks.items()}
    return closed | {name: exact_match(of_name) for name, of_name in questions.items()}


def choices(tasks: Sequence[Task], accuracy: str) -> Test:
    """accuracy: its name in `evaluate choice`."""
    return lambda model: float(answer(model, tasks).as_dict()[accuracy])


def exact_match(questions: Sequence[Question]) -> Test:
    return lambda model: float(ask(model, questions).as_dict()["exact_match"])


def corpus(cell: Cell) -> Path:
    """What to train on; of the world's documents, the file that they are written to."""
    if "train" in cell.options:
        return Path(cell.options["train"])
    count = cell.settings["world.documents"]
    path = RUNS / cell.experiment / "data" / f"{count}-of-{world.PEOPLE}-people.jsonl.zst"
    return written_once(path, world.documents(count, TRAIN_SEED))


EXPERIMENT = Experiment("choice_tasks", score, table, draw)

if __name__ == "__main__":
    run_main(lambda: main(EXPERIMENT))

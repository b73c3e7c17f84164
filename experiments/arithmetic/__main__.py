"""Do heads help a model to calculate with polynomials?  See README.md.

Settings that begin with ring. say what the questions are: the ring (prime, powers), operations in training (from 1 to
`learnt`) and in the test (from 1 to `asked`), how many are trained on (count) and asked for each number of operations
(heldout), pause bytes.
"""

from pathlib import Path
from statistics import fmean
from typing import Any

import bytemtp
from bytemtp.common.cli import run_main
from bytemtp.common.runtime import pick_device
from experiments.arithmetic.questions import OPERATORS, Question, questions, unheard
from experiments.arithmetic.report import draw, table
from experiments.arithmetic.ring import Ring
from experiments.documents import answers, written_once
from experiments.grid import RUNS, Cell, Experiment, main, train

TRAIN_SEED = 0
"""Of the questions, the same for all cells, like those of the test, which follow; --seeds are those of the weights and
of the order."""


def score(cell: Cell) -> dict[str, Any]:
    ring, asked = ring_of(cell.settings), heldout_of(cell.settings)
    trained = train(cell, corpus(cell, asked))
    model = bytemtp.load(cell.folder, pick_device().value)
    written = {m: answers(model, [q.prompt for q in of_m], ring.powers) for m, of_m in asked.items()}
    return trained | figures(ring, asked, written, cell.settings["ring.learnt"])


def ring_of(settings: dict[str, Any]) -> Ring:
    return Ring(settings["ring.prime"], settings["ring.powers"])


def heldout_of(settings: dict[str, Any]) -> dict[int, list[Question]]:
    """The questions of the test by their number of operations m, from a seed of their own each."""
    ring, count, pause = ring_of(settings), settings["ring.heldout"], settings["ring.pause"]
    return {m: list(questions(ring, count, [m], pause, TRAIN_SEED + m)) for m in range(1, settings["ring.asked"] + 1)}


def corpus(cell: Cell, asked: dict[int, list[Question]]) -> Path:
    """The file to train on."""
    ring = ring_of(cell.settings)
    learnt, count, pause, heldout = (cell.settings[f"ring.{name}"] for name in ("learnt", "count", "pause", "heldout"))
    kind = f"to-{learnt}-operations-{count}-pause-{pause}-without-{heldout}-to-{max(asked)}"
    name = f"modulo-{ring.prime}-and-{ring.powers}-{kind}.jsonl.zst"
    taboo = {question.expression for of_m in asked.values() for question in of_m}
    texts = unheard(ring, count, range(1, learnt + 1), pause, TRAIN_SEED, taboo)
    return written_once(RUNS / cell.experiment / "data" / name, texts)


def figures(
    ring: Ring, asked: dict[int, list[Question]], written: dict[int, list[bytes]], learnt: int
) -> dict[str, Any]:
    """Shares, from 0 to 1.

    exact, digits: by number of operations, of answers that are right, and of coefficients.
    within, beyond: of answers that are right, over all questions with as many operations as in training, and with more.
    operators: of answers that are right, with one operation, by operator.
    """
    digits = {m: [accuracy(ring, q, answer) for q, answer in zip(asked[m], written[m], strict=True)] for m in asked}
    exact = {m: [share == 1 for share in digits[m]] for m in asked}
    by_operator = {
        operator: fmean([right for q, right in zip(asked[1], exact[1], strict=True) if q.operator == operator])
        for operator in OPERATORS
    }
    return {
        "exact": [fmean(exact[m]) for m in asked],
        "digits": [fmean(digits[m]) for m in asked],
        "within": fmean([right for m in asked if m <= learnt for right in exact[m]]),
        "beyond": fmean([right for m in asked if m > learnt for right in exact[m]]),
        "operators": by_operator,
    }


def accuracy(ring: Ring, question: Question, written: bytes) -> float:
    """Share of the coefficients that are right; what is no element has none."""
    answer = parsed(ring, written)
    return 0.0 if answer is None else fmean([a == b for a, b in zip(answer, question.answer, strict=True)])


def parsed(ring: Ring, written: bytes) -> str | None:
    """The digits of an element; None if it is none."""
    text = written.decode("latin-1")
    return text if len(text) == ring.powers and set(text) <= set(map(str, range(ring.prime))) else None


EXPERIMENT = Experiment("arithmetic", score, table, draw)

if __name__ == "__main__":
    run_main(lambda: main(EXPERIMENT))

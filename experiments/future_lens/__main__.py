"""How much of the bytes to come does one hidden state hold?  See README.md.

Beside its settings a preset says which files the contexts are from (train: to fit on, heldout: to score on) and how
many of each are taken (contexts, tested).
"""

import math
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

import bytemtp
from bytemtp import ByteMTP
from bytemtp.common.cli import run_main
from bytemtp.common.runtime import pick_device
from bytemtp.common.vocab import VOCAB_SIZE
from experiments.future_lens import probes, transplants
from experiments.future_lens.contexts import Contexts, drafts, read, windows
from experiments.future_lens.report import draw, table
from experiments.grid import Cell, Experiment, main, train


def score(cell: Cell) -> dict[str, Any]:
    trained = train(cell, cell.options["train"])
    model = bytemtp.load(cell.folder, pick_device().value).requires_grad_(False)
    return trained | look(model, cell.options)


def look(model: ByteMTP, options: dict[str, Any]) -> dict[str, Any]:
    """By method, layer (one where there is no choice) and distance n: precision@1, and surprisal in bits.

    Both are means over the tested contexts.  Precision is the share of bytes that are those that the model writes,
    surprisal -log2 of the probability that the model itself gives the expected byte, after what it has written.
    """
    training = read(model, windows(options["train"], options["contexts"]))
    rows = windows(options["heldout"], options["tested"])
    test = read(model, rows)
    expected = {
        "bytes": probes.to_bytes(training, test),
        "states": probes.to_states(model, training, test),
        "fixed": transplants.fixed(model, test),
        "learnt": transplants.learnt(model, training, test),
        "heads": drafts(model, rows),
        "bigram": probes.bigram(training, test),
    }
    return {
        "fitted": len(training.last),
        "tested": len(test.last),
        "precision": {method: rounded(precision(ids, test)) for method, ids in expected.items()},
        "surprisal": {method: rounded(surprisal(model, ids, test)) for method, ids in expected.items()},
    }


def precision(expected: Int[Tensor, "r l n"], test: Contexts) -> Float[Tensor, "l n"]:
    return (expected == test.written[:, None, : expected.shape[2]]).double().mean(0)


@torch.no_grad()
def surprisal(model: ByteMTP, expected: Int[Tensor, "r l n"], test: Contexts) -> Float[Tensor, "l n"]:
    says = model.logits(0, test.later)[:, : expected.shape[2], :VOCAB_SIZE].log_softmax(-1)
    return says.gather(2, expected.transpose(1, 2)).double().mean(0).T / -math.log(2)


def rounded(values: Float[Tensor, "l n"]) -> list[list[float]]:
    return [[round(value, 5) for value in row] for row in values.tolist()]


EXPERIMENT = Experiment("future_lens", score, table, draw)

if __name__ == "__main__":
    run_main(lambda: main(EXPERIMENT))

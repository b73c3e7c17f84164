"""A small corpus, and a run on it that nobody stopped."""

import random
from pathlib import Path

import pytest
import torch

from bytemtp.training.trainer import train
from tests.training.runs import SETTINGS, WORDS


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> str:
    """40 documents of 10 to 70 bytes: an epoch is some 10 batches, so the runs here cross its end."""
    folder = tmp_path_factory.mktemp("corpus")
    draw = random.Random(0)
    for i in range(40):
        words = draw.choices(WORDS, k=draw.randint(2, 9))
        (folder / f"{i:02}.txt").write_text("".join(words))
    return str(folder)


@pytest.fixture(scope="module")
def whole(corpus: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nobody stopped."""
    torch.set_num_threads(1)
    run = tmp_path_factory.mktemp("whole") / "run"
    assert train(SETTINGS, [corpus], run, device="cpu").finished
    return run

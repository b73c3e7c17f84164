"""Small runs that tests of training have in common: their settings, and what is compared of two of them."""

import hashlib
import json
from itertools import takewhile
from pathlib import Path
from typing import Any

from bytemtp.common.settings import DataConfig, ModelConfig, Settings, TrainConfig, changed
from bytemtp.data.stream import stream
from bytemtp.model.checkpoint import latest

SETTINGS = Settings(
    ModelConfig(dim=16, layers=2, attention_heads=2, ffn_dim=24, n_future=2),
    TrainConfig(
        steps=12, batch_size=4, seq_len=32, lr=1e-2, warmup=2, dtype="float32", log_every=3, valid_every=5,
        valid_bytes=256, checkpoint_every=4, sample_bytes=0,
    ),
    DataConfig(valid_fraction=0.2),
)  # fmt: skip
CLOCK = {"bytes_per_s", "elapsed_s", "peak_memory_bytes"}
"""What may differ between two equal runs."""
WORDS = ["alpha ", "beta ", "gamma\n", "delta, ", "epsilon. "]


def settings(**values: Any) -> Settings:
    return changed(SETTINGS, **{f"train.{name}": value for name, value in values.items()})


def weights(run: Path) -> str:
    """Hash of the newest weights and optimiser state."""
    folder = latest(run)
    assert folder is not None
    names = ("model.safetensors", "optimizer.safetensors")
    return hashlib.sha256(b"".join((folder / name).read_bytes() for name in names)).hexdigest()


def lines(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def without_clock(run: Path) -> list[dict[str, Any]]:
    return [{key: value for key, value in line.items() if key not in CLOCK} for line in lines(run)]


def steps_of(corpus: str, epochs: int) -> int:
    """Steps until every row of so many epochs was in a batch: by reading the rows."""
    options: dict[str, Any] = {"split": "train", "valid_fraction": 0.2, "n_future": 2}
    with stream(corpus, 32, 4, epochs=None, **options) as batches:
        return 1 + sum(1 for _ in takewhile(lambda batch: batch.cursor.epoch < epochs, batches))

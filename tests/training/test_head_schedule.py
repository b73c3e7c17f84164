"""How the far heads' weight in the trunk changes over a run."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bytemtp.common.errors import UserError
from bytemtp.common.settings import (
    DataConfig,
    ModelConfig,
    Settings,
    TrainConfig,
    head_weights,
    scheduled_weights,
    unflatten,
)
from bytemtp.training import trainer
from bytemtp.training.loss import HeadLosses, backward
from bytemtp.training.trainer import train

SCHEDULES = ("constant", "late", "anneal", "forward", "reverse", "deepseek")


@pytest.mark.parametrize(
    ("text", "weights"),
    [("equal", [1, 1, 1]), ("far:0.1", [1, 0.1, 0.1]), ("far:0", [1, 0, 0]), ("geometric:0.5", [1, 0.5, 0.25])],
)
def test_head_weights(text: str, weights: list[float]) -> None:
    assert head_weights(text, 3) == weights


@pytest.mark.parametrize(
    "text", ["", "far", "far:", "far:2", "far:-1", "near:0.1", "geometric:x", "equal:1", "far:nan"]
)
def test_bad_head_weights(text: str) -> None:
    with pytest.raises(UserError, match="it must be equal, far:W or geometric:R with a number from 0 to 1"):
        TrainConfig(head_weights=text)


@pytest.mark.parametrize(
    ("schedule", "by_quarter"),
    [
        ("constant", [[1, 0.5, 0.25, 0.125]] * 5),
        ("late", [[1, 0, 0, 0]] * 3 + [[1, 0.5, 0.25, 0.125]] * 2),
        ("anneal", [[1, 0.5 * x, 0.25 * x, 0.125 * x] for x in (1, 0.75, 0.5, 0.25, 0)]),
        ("forward", [[1, 0, 0, 0], [1, 0.5, 0, 0], [1, 0.5, 0.25, 0]] + [[1, 0.5, 0.25, 0.125]] * 2),
        ("reverse", [[1, 0.5, 0.25, 0.125], [1, 0.5, 0.25, 0], [1, 0.5, 0, 0]] + [[1, 0, 0, 0]] * 2),
        ("deepseek", [[1, 0.5, 0.25, 0.125]] * 3 + [[1, 0.5 / 3, 0.25 / 3, 0.125 / 3]] * 2),
    ],
)
def test_weights_by_quarter_of_a_run(schedule: str, by_quarter: list[list[float]]) -> None:
    weights = head_weights("geometric:0.5", 4)
    assert [scheduled_weights(weights, schedule, quarter / 4) for quarter in range(5)] == by_quarter


@given(st.integers(1, 8), st.sampled_from(SCHEDULES), st.floats(-1, 2))
def test_head_1_keeps_its_weight_and_no_other_grows(n: int, schedule: str, done: float) -> None:
    weights = head_weights("geometric:0.9", n)
    now = scheduled_weights(weights, schedule, done)
    assert len(now) == n and now[0] == 1
    assert all(0 <= new <= old for new, old in zip(now, weights, strict=True))


@pytest.mark.parametrize(
    ("schedule", "by_step"),
    [
        ("late", [0, 0, 0, 0.5]),
        ("forward", [0, 0, 0.5, 0.5]),
        ("reverse", [0.5, 0.5, 0, 0]),
        ("anneal", [0.5, 0.375, 0.25, 0.125]),
        ("deepseek", [0.5, 0.5, 0.5, 0.5 / 3]),
    ],
)
def test_a_run_follows_its_schedule(
    schedule: str, by_step: list[float], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second head's weight, step by step, also where the run is cut and gone on with."""
    seen = []

    def recording(*arguments: Any, **options: Any) -> HeadLosses:
        seen.append(options["weights"])
        return backward(*arguments, **options)

    monkeypatch.setattr(trainer, "backward", recording)
    corpus = tmp_path / "corpus.txt"
    corpus.write_bytes(b"a rose is a rose is a rose\n" * 40)
    settings = Settings(
        ModelConfig(dim=16, layers=1, attention_heads=2, ffn_dim=16, n_future=2),
        TrainConfig(
            steps=4,
            batch_size=2,
            seq_len=16,
            head_weights="far:0.5",
            head_schedule=schedule,  # type: ignore[arg-type]
            dtype="float32",
            sample_bytes=0,
        ),
        DataConfig(valid_fraction=0.0),
    )
    train(settings, [str(corpus)], tmp_path / "run", stop_after=3)
    train(settings, [str(corpus)], tmp_path / "run", resume=True)
    assert seen == [[1, weight] for weight in by_step]


def test_an_unknown_schedule_is_told() -> None:
    with pytest.raises(UserError, match=r"train\.head_schedule is 'backward'; choose from constant, late"):
        unflatten({"train.head_schedule": "backward"})

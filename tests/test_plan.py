"""The plan of a run on many GPUs: the arithmetic of a step that is run, and what fits."""

import re
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bytemtp.common.errors import UserError
from bytemtp.common.presets import PRESETS
from bytemtp.common.settings import ModelConfig, Settings, TrainConfig, changed
from bytemtp.model.attention import Layout
from bytemtp.model.model import ByteMTP
from bytemtp.plan import dealt, main, step_flops
from bytemtp.training.cost import GB, Flops, memory, meta_model
from bytemtp.training.traffic import traffic

SMALL = Settings(
    ModelConfig(dim=32, layers=4, attention_heads=4, ffn_dim=48, n_future=3),
    TrainConfig(batch_size=8, accumulate=4, seq_len=40, far_rows=0.5, steps=10),
)


def planned(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    main(words)
    return capsys.readouterr().out


@given(st.integers(1, 40), st.integers(0, 50))
def test_pairs_of_a_row_are_those_that_see_each_other(length: int, window: int) -> None:
    seen = [(i, j) for i in range(length) for j in range(i + 1) if not window or i - j < window]
    assert Layout.of(1, length, window=window).pairs == len(seen)


@pytest.mark.parametrize("window", [0, 16])
def test_flops_are_those_that_a_run_counts(window: int) -> None:
    """For rows of one document each: what the trainer's mfu is made from."""
    own = replace(SMALL, model=replace(SMALL.model, window=window))
    model = ByteMTP(own.model)
    pairs = model.layout(8, 40, torch.zeros(8, 40, dtype=torch.int64)).pairs
    assert step_flops(own) == Flops.of_model(model, 0.5).of(8 * 40, pairs)
    half = changed(own, **{"train.far_from": 0.5})
    assert step_flops(half) == Flops.of_model(model, 0.25).of(8 * 40, pairs)


def test_the_table_is_what_a_start_of_training_would_say(capsys: pytest.CaptureFixture[str]) -> None:
    out = planned(capsys, "--preset", "7b", "--gpus", "64")
    own = changed(PRESETS["7b"], **{"train.accumulate": 24})
    for name, sharded in (("ddp", False), ("fsdp", True)):
        need = memory(own, torch.bfloat16, 64, sharded=sharded)
        (line,) = re.findall(f"^{name} .*", out, re.M)
        parts = need.weights, need.gradients, need.moments, need.activations, need.total
        assert line.split()[1:6] == [f"{part / GB:.1f}" for part in parts]
        assert line.endswith("too much") == (need.total > 80 * GB) == (not sharded)
    assert "batch: 1536 rows of 8192 bytes, 24 x 1 on each GPU\n" in out
    assert out.endswith("settings: --train.accumulate 24 --train.parallel fsdp\n")


def test_days_are_flops_over_what_the_gpus_do(capsys: pytest.CaptureFixture[str]) -> None:
    """Twice the steps are twice the days, twice the GPUs half."""
    names = ["--preset=1.3b", "--tflops=1000", "--mfu=0.5", "--memory=1000"]
    flops = step_flops(PRESETS["1.3b"])
    for gpus, steps in ((1, 1000), (8, 1000), (8, 2000)):
        out = planned(capsys, *names, f"--gpus={gpus}", f"--train.steps={steps}")
        found = re.search(r"([\d.,e+-]+) days, ([\d,]+) GPU hours", out)
        assert found is not None
        assert float(found[1].replace(",", "")) == pytest.approx(flops * steps / (gpus * 5e14) / 86400, rel=1e-2)
        assert int(found[2].replace(",", "")) == round(flops * steps / 5e14 / 3600)


def test_the_bytes_sent_are_those_of_the_model_of_traffic(capsys: pytest.CaptureFixture[str]) -> None:
    out = planned(capsys, "--preset=7b", "--gpus=64", "--train.shards=8")
    assert out.endswith("settings: --train.accumulate 24 --train.parallel fsdp --train.shards 8\n")
    own = changed(PRESETS["7b"], **{"train.accumulate": 24, "train.shards": 8})
    seconds = step_flops(own) / (64 * 0.4 * 989e12)
    for name, sharded in (("ddp", False), ("fsdp", True)):
        sent = traffic(own, torch.bfloat16, 64, sharded=sharded).total / GB
        (line,) = re.findall(f"^with {name} .*", out, re.M)
        assert line.startswith(f"with {name} a GPU sends {sent:,.1f} GB a step (")
        assert line.endswith(f", {sent / seconds:,.1f} GB/s")
    assert "sends" not in planned(capsys, "--preset=1.3b")


LONG_ROWS = ["--preset=7b", "--gpus=64", "--train.seq-len=1048576", "--train.batch-size=4", "--train.accumulate=1"]


def test_rows_that_are_too_long_for_a_gpu_are_shared_out(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UserError, match=r"4 in 1 rounds are 4 rows of 1048576 bytes each, which 64 processes cannot"):
        main(LONG_ROWS)
    out = planned(capsys, *LONG_ROWS, "--train.context-parallel=16")
    assert "batch: 4 rows of 1048576 bytes, 1 x 1 on each 16 GPUs\n" in out
    assert re.search(r"^with fsdp a GPU sends .* once 0\.1, attention 193\.3\), 1\.7 GB/s$", out, re.M)
    assert out.endswith("settings: --train.accumulate 1 --train.parallel fsdp --train.context-parallel 16\n")


def test_rounds_are_dealt_to_the_gpus() -> None:
    assert dealt(SMALL, 4).train.accumulate == 1
    whole = changed(SMALL, **{"train.far_rows": 1.0})
    assert dealt(changed(whole, **{"train.accumulate": 1}), 8).train.accumulate == 1
    with pytest.raises(UserError, match="8 in 4 rounds are 2 rows of 40 bytes each, which 3 processes cannot share"):
        dealt(whole, 3)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--preset"], "Missing value for argument '--preset'"),
        (["--preset=13b", "--gpus=2"], "weights, .* take some 105 GB on each of 2 GPUs of 80; plan with more --gpus"),
        (["--preset=7b", "--gpus=64", "--train.parallel=ddp"], "take some 117 GB .*; plan with --train.parallel fsdp,"),
        (
            ["--preset=1.3b", "--gpus=4", "--train.accumulate=64"],
            r"a step takes some \d+ GB on each of 4 GPUs of 80, \d+ of them activations; set train.accumulate to 96 or",
        ),
        (["--preset=13b", "--gpus=2", "--train.shards=2"], "take some 105 GB on each of 2 .* plan with more --gpus"),
        (["--preset=13b", "--gpus=64", "--train.shards=2"], "take some 105 GB .* plan with --train.shards 0"),
        (["--preset=7b", "--gpus=64", "--train.shards=24"], "train.shards is 24, which does not divide the 64 proc"),
        (["--gpus=8", "--train.context-parallel=3"], "train.context_parallel is 3, which does not divide the number"),
        (
            [*LONG_ROWS[:3], "--train.batch-size=64", "--train.accumulate=1"],
            "some 874 GB on each of 64 .*; set train.context_parallel to 2 and train.accumulate to 64",
        ),
        (["--mfu=1.2"], "--mfu is 1.2; it must be above 0 and at most 1$"),
        (["--gpus=0"], "--gpus is 0; it must be above 0"),
        (["--tflops=0"], "--tflops is 0; it must be above 0"),
        (["--train.minutes=5"], "a plan goes by train.steps; set train.minutes and train.epochs to 0"),
        (["--preset=8b"], "unknown preset '8b'; choose from nano,"),
    ],
)
def test_what_cannot_be_is_told_in_one_line(words: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        main(words)
    assert "\n" not in str(caught.value)


def test_layers_for_heads_are_added_as_in_a_training(capsys: pytest.CaptureFixture[str]) -> None:
    """`midi` has eight layers, which would all be the heads'."""
    for words in ([], ["--model.layers=9"]):
        own = changed(PRESETS["midi"], **{"model.topology": "parallel", "model.layers": 9})
        out = planned(capsys, "--preset=midi", "--model.topology=parallel", *words)
        assert out.startswith(f"midi: {meta_model(own).num_parameters():,} parameters, 8 heads\n")


def test_wider_arithmetic_takes_more(capsys: pytest.CaptureFixture[str]) -> None:
    activations = []
    for name in ("float32", "auto"):
        out = planned(capsys, "--preset=300m", "--memory=1000", f"--train.dtype={name}")
        activations += map(float, re.findall(r"^ddp +(?:[\d.]+ +){3}([\d.]+)", out, re.M))
    assert activations[0] > 1.4 * activations[1]


def test_a_peak_of_another_arithmetic_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--preset=300m", "--memory=1000", "--train.dtype=float32"]
    for more, told in (["--tflops=60"], False), ([], True):
        main([*words, *more])
        assert ("--tflops is an H100's in bfloat16" in capsys.readouterr().err) == told


def test_a_file_of_settings_counts(tmp_path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "own.toml").write_text("[train]\nsteps = 7\n")
    words = ["--preset=nano", f"--config={tmp_path / 'own.toml'}"]
    assert "the run: 7 steps," in planned(capsys, *words)
    assert "the run: 9 steps," in planned(capsys, *words, "--train.steps=9")

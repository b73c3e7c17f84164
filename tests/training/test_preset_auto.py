"""What is chosen for this machine: a preset for the minutes, and whether to compile."""

from dataclasses import replace

import pytest
import torch

from bytemtp.common.errors import UserError
from bytemtp.common.presets import PRESETS
from bytemtp.common.settings import changed
from bytemtp.train import read_command
from bytemtp.training import auto
from bytemtp.training.auto import check_compiler, pick_compile
from tests.training.runs import SETTINGS, settings


@pytest.mark.parametrize(
    ("speed", "minutes", "expected"),
    [(1.0, 5, "tiny"), (1.0, 1, "nano"), (1.0, 25, "mini"), (4.0, 5, "mini"), (0.1, 60, "tiny"), (1000.0, 60, "small")],
)
def test_preset_auto_weighs_the_minutes_by_the_speed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], speed: float, minutes: int, expected: str
) -> None:
    monkeypatch.setattr(auto, "measure_speed", lambda *_: speed * auto.REFERENCE_BYTES_PER_S)
    command = read_command(["corpus", "--out", "run", "--preset", "auto", f"--train.minutes={minutes}"])
    assert command.preset == expected
    assert command.settings == changed(PRESETS[expected], **{"train.minutes": float(minutes)})
    assert f"preset: {expected} (" in capsys.readouterr().err


def test_preset_auto_needs_minutes() -> None:
    with pytest.raises(UserError, match=r"say it with --train\.minutes M"):
        read_command(["corpus", "--out", "run", "--preset", "auto"])


def test_the_speed_of_this_machine_is_a_number() -> None:
    assert 1e2 < auto.measure_speed(SETTINGS, torch.device("cpu")) < 1e8


def test_compiling_is_for_long_runs() -> None:
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    assert not pick_compile(settings(steps=10), cpu, 10_000).value
    assert pick_compile(settings(steps=10**9), cpu, 10_000).value
    assert pick_compile(settings(minutes=600), cpu, 10_000).value
    assert pick_compile(settings(steps=10), cuda, 10_000).value
    assert not pick_compile(settings(compile="false"), cuda, 10_000).value


@pytest.mark.parametrize("compiler", ["", "ccache g++", "no-such-compiler"])
def test_a_compiler_that_torch_will_not_find(compiler: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """It looks for one name alone; then a run that was long enough ended with its traceback."""
    monkeypatch.setenv("CXX", compiler)
    plan, cpu = PRESETS["tiny"], torch.device("cpu")
    choice = pick_compile(plan, cpu, 10**9)
    assert (choice.value, choice.reason) == (False, "there is no C++ compiler (CXX, else g++)")
    with pytest.raises(UserError, match=r"train.compile is true, but there is no C\+\+ compiler"):
        check_compiler(replace(plan.train, compile="true"), cpu)

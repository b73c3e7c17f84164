"""Which device is taken, and that a CUDA device becomes the current one."""

from typing import Any

import pytest
import torch

from bytemtp.common.errors import UserError
from bytemtp.common.runtime import moved, pick_device


@pytest.fixture
def two_cards(monkeypatch: pytest.MonkeyPatch) -> list[torch.device]:
    """A machine with two CUDA devices; what is made the current one."""
    current: list[torch.device] = [torch.device("cuda", 0)]
    answers: dict[str, Any] = {
        "is_available": lambda: True,
        "device_count": lambda: 2,
        "current_device": lambda: current[-1].index,
        "set_device": current.append,
        "get_device_name": lambda device: f"card {device.index}",
    }
    for name, answer in answers.items():
        monkeypatch.setattr(torch.cuda, name, answer)
    return current


@pytest.mark.parametrize(("requested", "index"), [("auto", 0), ("cuda", 0), ("cuda:0", 0), ("cuda:1", 1)])
def test_a_cuda_device_becomes_the_current_one(two_cards: list[torch.device], requested: str, index: int) -> None:
    """With --device cuda:1 the masks were made on cuda:0, and checkpoints held the random numbers of cuda:0."""
    assert pick_device(requested).value == two_cards[-1] == torch.device("cuda", index)
    assert len(two_cards) == 2


def test_the_cpu_leaves_cuda_alone(two_cards: list[torch.device]) -> None:
    assert pick_device("cpu").value == torch.device("cpu")
    assert len(two_cards) == 1


@pytest.mark.parametrize(("requested", "message"), [
    ("cuda:2", "device 'cuda:2' is not available; use cpu or auto"),
    ("mps", "device 'mps' is not supported; use auto, cpu, cuda or cuda:N"),
    ("gpu", "unknown device 'gpu'; use auto, cpu, cuda or cuda:N"),
])  # fmt: skip
def test_what_is_not_there_is_refused(two_cards: list[torch.device], requested: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        pick_device(requested)


@pytest.mark.gpu
def test_what_is_moved_arrives() -> None:
    x = torch.arange(1000)
    assert torch.equal(moved(x, torch.device("cuda")).cpu(), x)


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
def test_the_second_card() -> None:
    pick_device("cuda:1")
    assert torch.cuda.current_device() == 1
    pick_device("cuda:0")

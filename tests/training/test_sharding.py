"""Processes that share out the weights take the steps of one, and hand runs on to any number of processes.

What the processes do is in sharding_jobs.py.
"""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from bytemtp.common.errors import UserError
from bytemtp.common.presets import PRESETS
from bytemtp.common.settings import changed
from bytemtp.model.checkpoint import load_model
from bytemtp.model.model import ByteMTP
from bytemtp.training import cost, sharding
from bytemtp.training.cost import check_memory, largest_layer, memory
from bytemtp.training.distributed import ALONE, World
from bytemtp.training.optimizer import is_layer_matrix
from bytemtp.training.sharding import pick_parallel, will_shard
from experiments.launch.measure import ways
from tests.training.distributed_jobs import BASE
from tests.training.sharding_jobs import CASES, COPIES, FOUR, HALF, MADE, RELAY, SINGLE, SLOW, WEIGHED
from tests.training.test_distributed import assert_runs_alike, ended, lines, run_jobs, tensors

CARD = 80 * cost.GB
CUDA = torch.device("cuda", 0)
CPU = torch.device("cpu")
SAVED = ("model.safetensors", "optimizer.safetensors")


@pytest.fixture(scope="module")
def jobs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run_jobs("sharding_jobs.py", tmp_path_factory.mktemp("sharding") / "jobs", "fast")


@pytest.fixture(scope="module")
def slow_jobs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run_jobs("sharding_jobs.py", tmp_path_factory.mktemp("sharding") / "slow", "slow")


def largest_difference(one: Path, other: Path) -> float:
    """Between weights, as a share of the largest weight of a tensor."""
    ours, theirs = tensors(one, SAVED[0]), tensors(other, SAVED[0])
    assert ours.keys() == theirs.keys()
    return max(float((x - theirs[name]).abs().max() / x.abs().max().clamp_min(1e-3)) for name, x in ours.items())


@pytest.mark.parametrize("case", CASES)
def test_sharded_processes_take_the_steps_of_one(jobs: Path, case: str) -> None:
    """In float64: several micro-batches of packed documents, and the clipping of gradients in slices."""
    assert_runs_alike(jobs / "one" / case, jobs / "two" / case)
    weights = tensors(jobs / "two" / case, SAVED[0])
    assert weights["embed.weight"].dtype == torch.float64
    assert {name: x.shape for name, x in weights.items()} == {
        name: x.shape for name, x in load_model(jobs / "one" / case).state_dict().items()
    }
    assert ended(jobs, "two")[1].count("parallel: fsdp (as asked)") == len(CASES)


@pytest.mark.parametrize("case", COPIES)
def test_copies_of_the_model_take_the_steps_of_one(jobs: Path, case: str) -> None:
    """Two copies, shared by two processes each: gradients are summed over the copies after the last micro-batch."""
    assert_runs_alike(jobs / "one" / case, jobs / "copies" / case)
    assert set(ended(jobs, "copies")[0]) == {0}
    assert tensors(jobs / "copies" / case, SAVED[0])["embed.weight"].dtype == torch.float64


@pytest.mark.slow
@pytest.mark.parametrize(("job", "case"), [*(("two", case) for case in SLOW), *(("four", case) for case in FOUR)])
def test_sharded_processes_take_the_steps_of_one_whatever_the_model(slow_jobs: Path, job: str, case: str) -> None:
    assert_runs_alike(slow_jobs / "one" / case, slow_jobs / job / case)


@pytest.mark.parametrize("case", SINGLE)
def test_in_float32_they_do_but_for_rounding(jobs: Path, case: str) -> None:
    """Gradients are summed in another order; Muon rounds them to bfloat16, here and there to another neighbour."""
    tolerance = 1e-2 if "muon" in case else 1e-4
    assert 0 < largest_difference(jobs / "single" / case, jobs / "singles" / case) < tolerance


@pytest.mark.slow
@pytest.mark.parametrize("case", HALF)
def test_products_in_bfloat16_are_those_of_whole_weights(slow_jobs: Path, case: str) -> None:
    """Gathered in bfloat16, weights are what autocast makes of them: the losses of the first steps are the same."""
    ddp, fsdp = (lines(slow_jobs / job / case) for job in ("ddp", "fsdp"))
    assert ddp[0]["loss"] == pytest.approx(fsdp[0]["loss"], rel=1e-6)
    assert largest_difference(slow_jobs / "ddp" / case, slow_jobs / "fsdp" / case) < 5e-3


def test_a_run_goes_from_sharded_processes_to_others(jobs: Path) -> None:
    """Four with two copies, one alone, eight that share one, two with all weights each, and two that share one.

    By Muon, whose momenta are sharded as its matrices are.
    """
    assert_runs_alike(jobs / "whole", jobs / "relay")
    assert all(set(ended(jobs, f"relay {job}")[0]) == {0} for job, *_ in RELAY)
    assert load_model(jobs / "relay").embed.weight.dtype == torch.float32


def test_each_process_holds_its_share(jobs: Path) -> None:
    """Of weights, gradients and momenta: the memory that is foreseen, without what is whole for a moment."""
    model = ByteMTP(WEIGHED.model)
    foreseen = memory(WEIGHED, torch.float32, 2, sharded=True).kept - 4 * 4 * largest_layer(model)
    assert [json.loads((jobs / f"weigh.{rank}.json").read_text()) for rank in range(2)] == [foreseen, foreseen]
    with_copies = changed(WEIGHED, **{"train.shards": 2})
    assert (
        memory(with_copies, torch.float32, 4, sharded=True).kept == memory(WEIGHED, torch.float32, 2, sharded=True).kept
    )
    assert [json.loads((jobs / f"weigh copies.{rank}.json").read_text()) for rank in range(4)] == [foreseen] * 4
    matrices = [parameter for name, parameter in model.named_parameters() if is_layer_matrix(name, parameter)]
    saved = memory(WEIGHED, torch.float32, 2).kept - foreseen
    assert saved == 3 * 4 * sum(matrix.numel() for matrix in matrices) // 2


def test_no_process_makes_the_whole_model(jobs: Path) -> None:
    """Beside its rows each has one matrix at a time, as drawn, and once more as PyTorch cuts it."""
    model = ByteMTP(MADE.model, MADE.train.seed)
    sizes = {name: 4 * p.numel() for name, p in model.named_parameters()}
    matrices = {name: size for name, size in sizes.items() if is_layer_matrix(name, model.get_parameter(name))}
    rows = sum(sizes.values()) - sum(matrices.values()) * 3 // 4
    for rank in range(4):
        held = json.loads((jobs / f"made.{rank}.json").read_text())
        assert rows < held < rows + 2.5 * max(sizes.values())
    found = load_file(jobs / "made.safetensors")
    torch.testing.assert_close(found, dict(model.state_dict()), rtol=0, atol=0)


def test_what_a_step_holds_and_sends_is_foreseen_within_a_tenth(jobs: Path) -> None:
    """Of the four processes: by PyTorch's allocator, and at every collective."""
    lines = json.loads((jobs / "measure.lines").read_text())
    assert [line["way"] for line in lines] == ["ddp", "fsdp", "fsdp/2", "fsdp/2"]
    for line in lines:
        foreseen, measured = line["sent"]
        assert measured == pytest.approx(foreseen, rel=1e-3), "a layer is gathered in vain"
    for line in lines[:3]:  # a CPU's products in bfloat16 make copies of their own
        foreseen, measured = line["held"]
        assert measured == pytest.approx(foreseen, rel=0.1)
        assert line["loss"] == pytest.approx(lines[0]["loss"], rel=1e-5)


@pytest.mark.gpu
@pytest.mark.parametrize("parts", [1, 2])
def test_all_cards_take_the_same_steps_and_send_what_is_foreseen(parts: int) -> None:
    """However they share; with one card there is one way.  The table is printed (`pytest -s`)."""
    if torch.cuda.device_count() % parts:
        pytest.skip("an odd number of cards cannot share out rows in halves")
    line = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=gpu", "-m"]
    line += ["experiments.launch.measure", f"--train.context-parallel={parts}"]
    outcome = subprocess.run(line, capture_output=True, text=True, timeout=600)
    assert outcome.returncode == 0, outcome.stderr
    print(outcome.stdout)
    rows = [row.split() for row in outcome.stdout.splitlines()[1:]]
    assert len(rows) == len(ways(torch.cuda.device_count()))
    for _, _, _, foreseen, sent, _, loss in rows:
        assert float(sent) == pytest.approx(float(foreseen), rel=0.1)
        assert float(loss) == pytest.approx(float(rows[0][-1]), rel=1e-4)


@pytest.mark.parametrize("job", ["killed before", "killed inside"])
def test_a_killed_process_ends_all_with_one_line(jobs: Path, job: str) -> None:
    """Also one that is lost inside of a layer, where PyTorch waits for it and not we."""
    statuses, text = ended(jobs, job)
    assert statuses == [2, -9]
    (told,) = {line for line in text if re.match(r"(error|\w+Error): ", line)}
    assert re.match("error: process 0 of 2 has lost another one: .*; find out why that one died, then go on wit", told)
    assert not any("Traceback" in line or "GLHF" in line for line in text)
    assert sum(line.startswith("samples: none, for the weights are sharded") for line in text) == 1


def test_the_choice_hangs_on_what_fits_on_a_card(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sharding, "device_memory", lambda device: CARD)
    small, large = (changed(PRESETS[name], **{"train.dtype": "bfloat16"}) for name in ("1.3b", "7b"))
    two = World(0, 2)
    assert pick_parallel(small, CUDA, two).value == "ddp"
    shared = changed(large, **{"train.accumulate": 768})  # a row for each
    assert str(pick_parallel(shared, CUDA, two)) == "fsdp (a step with all weights takes 123.5 GB of 80)"
    assert pick_parallel(changed(small, **{"train.accumulate": 64}), CUDA, two).value == "fsdp"  # 12 rows of a card
    assert pick_parallel(large, CPU, two) == ("ddp", "processes on a CPU share its memory")
    assert pick_parallel(changed(small, **{"train.parallel": "fsdp"}), CUDA, two) == ("fsdp", "as asked")


def test_one_process_has_nobody_to_share_with(monkeypatch: pytest.MonkeyPatch) -> None:
    """So a run of many goes on with one, whatever it was made with."""
    monkeypatch.setattr(cost, "device_memory", lambda device: CARD)
    assert not will_shard(changed(BASE, **{"train.parallel": "fsdp"}), CPU, ALONE)


@pytest.mark.parametrize(
    ("shards", "message"),
    [
        (3, "train.shards is 3, which does not divide the 4 processes"),
        (1, "is 1, so nobody would share"),
        (8, "does not"),
    ],
)
def test_copies_must_be_whole(shards: int, message: str) -> None:
    own = changed(BASE, **{"train.parallel": "fsdp", "train.shards": shards})
    with pytest.raises(UserError, match=message):
        will_shard(own, CPU, World(0, 4))
    assert not will_shard(changed(own, **{"train.parallel": "ddp"}), CPU, World(0, 4))
    assert will_shard(changed(own, **{"train.shards": 4}), CPU, World(0, 4))


def test_more_processes_are_the_remedy_for_a_model_that_is_too_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cost, "device_memory", lambda device: CARD)
    large = changed(PRESETS["13b"], **{"train.dtype": "bfloat16"})
    with pytest.raises(UserError, match="needs several cards that share it out; start it with torchrun and"):
        check_memory(large, CPU, 2)
    with pytest.raises(UserError, match="this model needs more cards than 2; start more processes, or choose a small"):
        check_memory(large, CPU, 2, sharded=True)
    check_memory(large, CPU, 8, sharded=True)
    few = changed(large, **{"train.shards": 2})
    with pytest.raises(UserError, match=r"needs more than 2 cards to share it; set train\.shards to 0"):
        check_memory(few, CPU, 8, sharded=True)

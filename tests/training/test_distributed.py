"""Several processes take the steps of one, whatever the model; one that fails ends the job, and says why once.

What the processes do is in distributed_jobs.py.
"""

import json
import os
import re
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import Tensor

from bytemtp.common.errors import UserError
from bytemtp.common.settings import changed
from bytemtp.data.stream import Batch, Cursor, Stream, stream
from bytemtp.model.checkpoint import latest
from bytemtp.training import distributed
from bytemtp.training.batches import check_shares, training_rows
from bytemtp.training.cost import memory
from bytemtp.training.distributed import ALONE, World, buckets, fresh
from bytemtp.training.loss import rows_of
from bytemtp.training.trainer import Trainer, train
from tests.training.distributed_jobs import BASE, CASES, FOUR, MISFORTUNES, write_corpus

CLOCK = {"bytes_per_s", "elapsed_s", "peak_memory_bytes"}
"""What may differ between two equal runs."""


def run_jobs(script: str, folder: Path, *which: str, timeout: float = 1800) -> Path:
    """The folder of all jobs of a script, once they have ended."""
    line = [sys.executable, Path(__file__).with_name(script), folder, *which]
    subprocess.run(line, check=True, timeout=timeout, env=os.environ | {"PYTHONPATH": "."})
    return folder


@pytest.fixture(scope="module")
def jobs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run_jobs("distributed_jobs.py", tmp_path_factory.mktemp("distributed") / "jobs", timeout=600)


def tensors(run: Path, name: str) -> dict[str, Tensor]:
    folder = latest(run)
    assert folder is not None
    return load_file(folder / name)


def lines(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def ended(jobs: Path, job: str) -> tuple[list[int], list[str]]:
    """Exit statuses, and the lines on standard error."""
    record = json.loads((jobs / f"{job}.json").read_text())
    return record["statuses"], record["errors"].splitlines()


def assert_alike(a: dict[str, Tensor], b: dict[str, Tensor]) -> None:
    """Absolutely only where sums cancel: next to the largest number of the tensor."""
    assert a.keys() == b.keys()
    for name, x in a.items():
        scale = float(x.abs().max())
        torch.testing.assert_close(b[name], x, rtol=1e-10, atol=1e-12 * scale, msg=lambda text, n=name: f"{n}: {text}")


def assert_same_lines(a: list[dict[str, Any]], b: list[dict[str, Any]]) -> None:
    """But for rounding and the clock."""
    for ours, theirs in zip(a, b, strict=True):
        assert ours.keys() == theirs.keys()
        for name, value in ours.items():
            if name not in CLOCK | {"split"}:
                known = [
                    (x, y) for x, y in zip(*map(many, (value, theirs[name])), strict=True) if (x, y) != (None, None)
                ]
                assert [x for x, _ in known] == pytest.approx([y for _, y in known], rel=1e-10), name


def assert_runs_alike(one: Path, other: Path, *, but: str = "") -> None:
    """In float64: weights and moments after ten steps, and what the metrics say, one of them left out."""
    for name in ("model.safetensors", "optimizer.safetensors"):
        assert_alike(tensors(one, name), tensors(other, name))
    assert tensors(other, "model.safetensors")["embed.weight"].dtype == torch.float64
    ours, theirs = ([{k: v for k, v in line.items() if k != but} for line in lines(run)] for run in (other, one))
    assert_same_lines(ours, theirs)


def many(value: Any) -> list[Any]:
    """Numbers of all heads, where there may be none of some."""
    return value if isinstance(value, list) else [value]


@pytest.mark.parametrize(("job", "case"), [*(("two", case) for case in CASES), *(("four", case) for case in FOUR)])
def test_several_processes_take_the_steps_of_one(jobs: Path, job: str, case: str) -> None:
    """In float64: the first gradients, the weights and moments after ten steps, and what the metrics say."""
    one, several = jobs / "one" / case, jobs / job / case
    assert_alike(load_file(one / "gradients.partial"), load_file(several / "gradients.partial"))
    for name in ("model.safetensors", "optimizer.safetensors"):
        assert_alike(tensors(one, name), tensors(several, name))
    assert tensors(one, "model.safetensors")["embed.weight"].dtype == torch.float64
    assert_same_lines(lines(several), lines(one))
    assert [line["bytes_seen"] for line in lines(several) if line["split"] == "train"] == [4 * 256, 8 * 256, 10 * 256]


def test_a_run_goes_from_one_number_of_processes_to_another(jobs: Path) -> None:
    """One, two, four and one again: no row is seen twice or left out, and losses since the last line are kept."""
    whole, relay = jobs / "one" / "relay", jobs / "relay"
    assert_alike(tensors(whole, "model.safetensors"), tensors(relay, "model.safetensors"))
    assert_same_lines(lines(relay), lines(whole))
    assert all(set(ended(jobs, job)[0]) == {0} for job in ("one", "two", "four", "last"))
    assert "warning: the run had processes 2 and goes on with 4: not bit for bit" in ended(jobs, "four")[1]


def test_only_the_first_process_logs(jobs: Path) -> None:
    for job in ("two", "four"):
        _, text = ended(jobs, job)
        assert text.count("torch.compile: False (as asked)") == len(CASES if job == "two" else FOUR) + 1


@pytest.mark.parametrize(
    ("job", "statuses", "message"),
    [
        ("user error", [2, 2], "error: step 3 is one too many"),
        (
            "killed",
            [2, -9],
            "error: process 0 of 2 has lost another one: .*; find out why that one died, then go on wit",
        ),
        ("taken", [2, 2], "error: .*run holds files that are not a run .letter.txt.; choose a new folder"),
        (
            "misspelt",
            [2, 2],
            "error: unknown setting '--train.stepz' in the command line; did you mean '--train.steps'",
        ),
        ("uneven", [2, 2], "error: train.batch_size 5 in 1 rounds are 5 rows of 16 bytes each, which 2 processes"),
        ("bug", [2, 1], "ZeroDivisionError: a bug"),
    ],
)
def test_trouble_of_one_process_ends_all_with_one_line(jobs: Path, job: str, statuses: list[int], message: str) -> None:
    assert job in MISFORTUNES
    found, text = ended(jobs, job)
    assert found == statuses
    # Twice where both have it by themselves and the first process, which has the store, is gone before the other asks.
    (told,) = {line for line in text if re.match(r"(error|\w+Error): ", line)}
    assert re.match(message, told)
    assert "GLHF" not in told  # gloo's
    assert ("Traceback (most recent call last):" in text) == (job == "bug")


def test_a_signal_to_one_process_stops_all_after_the_step(jobs: Path) -> None:
    statuses, text = ended(jobs, "signal")
    assert statuses == [143, 143]
    assert sum(line.startswith("stopped at step 4, saved in ") for line in text) == 1
    assert [line["step"] for line in lines(jobs / "signal" / "run")] == [1, 2, 3, 4]


def test_the_first_process_has_the_clock(jobs: Path) -> None:
    """The other's says seven seconds at every look, of six that the run takes."""
    statuses, text = ended(jobs, "clock")
    assert statuses == [0, 0]
    last = lines(jobs / "clock" / "run")[-1]
    assert last["step"] > 5
    assert any(line.startswith(f"finished at step {last['step']}, saved in ") for line in text)


def torchrun(processes: int, folder: Path, job: str, *options: str) -> subprocess.CompletedProcess[str]:
    """In FOLDER, which gets the corpus, too."""
    write_corpus(folder / "corpus")
    started = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}", *options]
    line = [sys.executable, *started, Path(__file__).with_name("distributed_jobs.py"), folder, job]
    return subprocess.run(line, capture_output=True, text=True, timeout=300, env=os.environ | {"PYTHONPATH": "."})


def test_a_restart_reads_nothing_that_the_dead_have_written() -> None:
    """With four processes, some connected to addresses of the first start: torchrun's store outlives it."""
    store = dist.HashStore()  # type: ignore[attr-defined]

    def meet(start: int) -> list[str]:
        def work(rank: int) -> str:
            own = fresh(store, World(rank, 4))
            if rank == start:
                own.set("address", f"of start {start}")
            return str(own.get("address").decode())

        with ThreadPoolExecutor(4) as pool:
            return list(pool.map(work, range(4)))

    assert [meet(start) for start in (1, 2)] == [["of start 1"] * 4, ["of start 2"] * 4]


@pytest.mark.slow
@pytest.mark.parametrize("processes", [2, 4])
@pytest.mark.parametrize("job", ["killed", "killed, sharded"])
def test_a_killed_process_costs_a_restart_and_no_more(tmp_path: Path, job: str, processes: int) -> None:
    """Process 1 is killed at step 5; the last checkpoint is of step 3."""
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    alone = torchrun(1, whole, job)
    restarted = torchrun(processes, cut, job, "--max-restarts=1")
    assert (alone.returncode, restarted.returncode) == (0, 0), alone.stderr + restarted.stderr
    told = re.findall(rf"^error: process (\d) of {processes} has lost another one", restarted.stderr, re.M)
    assert "1" not in told and len(told) == len(set(told))
    assert told or "closing signal SIGTERM" in restarted.stderr  # torchrun may end them before they say so
    for name in ("model.safetensors", "optimizer.safetensors"):
        assert_alike(tensors(whole / job / "run", name), tensors(cut / job / "run", name))
    assert_same_lines(lines(cut / job / "run"), lines(whole / job / "run"))


@pytest.mark.slow
@pytest.mark.parametrize("job", ["compiled", "compiled, sharded"])
def test_compiled_layers_make_no_difference(tmp_path: Path, job: str) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    alone, both = torchrun(1, one, job), torchrun(2, two, job)
    assert (alone.returncode, both.returncode) == (0, 0), alone.stderr + both.stderr
    assert "torch.compile: True (as asked)" in both.stderr
    assert_alike(tensors(one / job / "run", "model.safetensors"), tensors(two / job / "run", "model.safetensors"))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("job", "message"), [("user error", "error: step 3 is one too many"), ("misspelt", "error: unknown setting '--tr")]
)
def test_torchrun_ends_at_once_when_one_process_does(tmp_path: Path, job: str, message: str) -> None:
    """One line from each time that it was started."""
    outcome = torchrun(2, tmp_path, job, "--max-restarts=1")
    assert outcome.returncode == 1
    errors = re.findall("^error: .*", outcome.stderr, re.M)
    assert len(errors) == 2
    assert all(error.startswith(message) for error in errors)
    assert outcome.stderr.count("Traceback") <= 1  # torchrun's


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("corpus") / "files"
    write_corpus(folder)
    return str(folder)


def batches(corpus: str, world: World, cursor: Cursor | None, count: int, **values: Any) -> list[Batch]:
    own = changed(BASE, **values)
    with training_rows(own, [corpus], cursor, world, seq_len=own.train.seq_len, pin_memory=False) as rows:
        return [next(rows) for _ in range(count)]


def parts_of(batch: Batch, accumulate: int, far_rows: float) -> list[tuple[set[bytes], set[bytes]]]:
    """Each micro-batch: its rows, and those that far heads learn from; rows of this corpus hardly repeat."""
    size = len(batch.octets) // accumulate
    rows = [bytes(row.tolist()) for row in batch.octets]
    parts = [rows[i : i + size] for i in range(0, len(rows), size)]
    return [(set(part), set(part[: rows_of(size, far_rows)])) for part in parts]


@settings(max_examples=6)
@given(st.integers(1, 3), st.integers(1, 2), st.integers(1, 2), st.sampled_from([0.5, 1.0]), st.integers(1, 3))
def test_micro_batches_and_far_rows_are_those_of_one_process(
    corpus: str, size: int, accumulate: int, rows: int, far_rows: float, size_later: int
) -> None:
    """Also behind a cursor, dealt to another number of processes; cursors are the same on all."""
    batch_size = rows * accumulate * size * size_later * 2
    values = {"train.batch_size": batch_size, "train.accumulate": accumulate, "train.far_rows": far_rows}
    check_shares(changed(BASE, **values), World(0, size))
    alone = batches(corpus, ALONE, None, 3, **values)
    cursor: Cursor | None = None
    for world_size, expected in ((size, alone[:2]), (size_later, alone[2:])):
        dealt = [
            batches(corpus, World(rank, world_size), cursor, len(expected), **values) for rank in range(world_size)
        ]
        for shares, whole in zip(zip(*dealt, strict=True), expected, strict=True):
            assert {share.cursor for share in shares} == {whole.cursor}
            split = [parts_of(share, accumulate, far_rows) for share in shares]
            for of_ranks, (every, far) in zip(
                zip(*split, strict=True), parts_of(whole, accumulate, far_rows), strict=True
            ):
                assert set.union(*(part[0] for part in of_ranks)) == every
                assert set.union(*(part[1] for part in of_ranks)) == far
        cursor = dealt[0][-1].cursor


@settings(max_examples=12)
@given(st.lists(st.integers(1, 4), min_size=1, max_size=4), st.integers(1, 3))
def test_a_cursor_holds_for_any_number_of_processes(corpus: str, sizes: list[int], batch_size: int) -> None:
    """Also where the rows so far do not divide by it: a round of batches by each number of processes in turn."""

    def opened(rank: int, size: int, cursor: Cursor | None) -> Stream:
        rows = batch_size if size else 10**6
        return stream(corpus, 16, rows, rank=rank, world_size=max(1, size), cursor=cursor, prefetch=0)

    whole = next(opened(0, 0, None)).octets
    cursor: Cursor | None = None
    for size in sizes:
        shares = [next(opened(rank, size, cursor)) for rank in range(size)]
        begin = 0 if cursor is None else cursor.row
        dealt = torch.stack([share.octets for share in shares], dim=1).flatten(0, 1)
        assert dealt.equal(whole[begin : begin + batch_size * size])
        (cursor,) = {share.cursor for share in shares}
        assert cursor.row == begin + batch_size * size


@pytest.mark.parametrize(
    ("values", "size", "message"),
    [
        ({"train.batch_size": 10, "train.accumulate": 5}, 4, "10 in 5 rounds are 2 rows of 16 bytes.*multiple of 20"),
        ({"train.far_rows": 0.4}, 2, "train.far_rows 0.4 of 8 rows are 3, which 2 .* make it a multiple of 0.25"),
        (
            {"train.first_seq_len": 4, "train.accumulate": 1, "train.far_rows": 0.14},
            2,
            "0.14 of 64 rows are 9, which 2",
        ),
    ],
)
def test_what_cannot_be_shared_evenly_is_told(values: dict[str, Any], size: int, message: str) -> None:
    with pytest.raises(UserError, match=message):
        check_shares(changed(BASE, **values), World(0, size))
    check_shares(changed(BASE, **values), ALONE)


def test_far_rows_are_not_looked_at_without_far_heads() -> None:
    for model in ({"model.n_future": 1}, {"model.topology": "anticausal"}):
        check_shares(changed(BASE, **{"train.far_rows": 0.4, **model}), World(0, 2))


def test_a_card_is_for_one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_RANK", "1")
    World(1, 2).check_device(torch.device("cuda", 1))
    World(1, 2).check_device(torch.device("cpu"))
    ALONE.check_device(torch.device("cuda", 0))
    with pytest.raises(UserError, match="process 1 of 2 would run on cuda:0, which another one has; start no more"):
        World(1, 2).check_device(torch.device("cuda", 0))


def test_processes_that_see_other_checkpoints_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    ALONE.check_agreed("the newest checkpoint at step", 3)
    monkeypatch.setattr(World, "largest", lambda self, number: max(number, 7))
    World(1, 2).check_agreed("the newest checkpoint at step", 7)
    with pytest.raises(
        UserError, match="process 1 finds the newest checkpoint at step 0 and another one 7; all of them"
    ):
        World(1, 2).check_agreed("the newest checkpoint at step", 0)


def test_memory_is_that_of_a_share() -> None:
    one, two = memory(BASE, torch.float32), memory(BASE, torch.float32, 2)
    assert (two.kept, two.activations) == (one.kept, one.activations // 2)


@given(st.lists(st.integers(1, 9)), st.integers(1, 20))
def test_buckets_are_all_gradients_in_order(sizes: list[int], largest: int) -> None:
    gradients = [torch.full((size,), i) for i, size in enumerate(sizes)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(distributed, "BUCKET", largest)
        found = list(buckets(gradients))
    assert [x for bucket in found for x in bucket] == gradients
    assert all(len(bucket) == 1 or sum(x.numel() for x in bucket) <= largest for bucket in found)
    assert len(found) <= 1 + 2 * sum(sizes) // largest or largest < max(sizes)


def test_a_restarted_job_goes_on_with_the_run_that_it_began(corpus: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever its command line said; another job's run is refused, and so is one where the job has not restarted."""
    run = Path(tempfile.mkdtemp()) / "run"
    own = changed(BASE, **{"train.checkpoint_every": 3})
    step = Trainer._step

    def failing(trainer: Trainer) -> None:
        if trainer.state.step == 7:
            raise RuntimeError("power cut")
        step(trainer)

    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "job")
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "0")
    monkeypatch.setattr(Trainer, "_step", failing)
    with pytest.raises(RuntimeError, match="power cut"):
        train(own, [corpus], run, device="cpu")
    monkeypatch.setattr(Trainer, "_step", step)
    with pytest.raises(UserError, match="already holds a run"):
        train(own, [corpus], run, device="cpu")
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "another")
    with pytest.raises(UserError, match="already holds a run"):
        train(own, [corpus], run, device="cpu")
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "job")
    assert train(own, [corpus], run, device="cpu", overwrite=True).finished
    assert [line["step"] for line in lines(run)] == [4, 5, 8, 10, 10]
    whole = run.with_name("whole")
    train(own, [corpus], whole, device="cpu")
    assert (
        latest(whole).joinpath("model.safetensors").read_bytes()
        == latest(run).joinpath("model.safetensors").read_bytes()
    )

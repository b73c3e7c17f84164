"""Processes that share out the positions of each row take the steps of one.  What they do is in context_jobs.py."""

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bytemtp.common.errors import UserError
from bytemtp.common.settings import changed
from bytemtp.model.context_parallel import WHOLE, Part
from bytemtp.training.batches import check_shares, grouped
from bytemtp.training.cost import activation_bytes, memory
from bytemtp.training.distributed import ALONE, World
from tests.training.context_jobs import FAST, KILLED, PARTED, WAYS, cases_of
from tests.training.test_distributed import assert_runs_alike, ended, lines, run_jobs
from tests.training.test_sharding import largest_difference

NOT_COUNTED = "accepted_per_head"
"""Head 1's law of a byte may lie in another part of the row than the draft."""


@pytest.fixture(scope="module")
def jobs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run_jobs("context_jobs.py", tmp_path_factory.mktemp("context") / "jobs", "fast")


@pytest.fixture(scope="module")
def slow_jobs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run_jobs("context_jobs.py", tmp_path_factory.mktemp("context") / "slow", "slow")


@pytest.mark.parametrize("case", FAST)
@pytest.mark.parametrize("job", ["two", "sharded"])
def test_processes_with_parts_of_rows_take_the_steps_of_one(jobs: Path, job: str, case: str) -> None:
    """In float64: packed documents, several of them in a part and some across the cut."""
    assert_runs_alike(jobs / "one" / case, jobs / job / case, but=NOT_COUNTED)
    assert [line["bytes_seen"] for line in lines(jobs / job / case) if line["split"] == "train"][-1] == 10 * 256


@pytest.mark.slow
@pytest.mark.parametrize(("job", "case"), [(job, case) for job in WAYS for case in cases_of(job)])
def test_they_do_so_whatever_the_model(slow_jobs: Path, job: str, case: str) -> None:
    assert_runs_alike(slow_jobs / "one" / case, slow_jobs / job / case, but=NOT_COUNTED)


@pytest.mark.slow
def test_compiled_layers_are_cut_around_the_exchange(slow_jobs: Path) -> None:
    """In float32: ten steps end with the same weights but for rounding."""
    assert largest_difference(slow_jobs / "compiled", slow_jobs / "compiled parts") < 1e-3


def test_neighbours_that_read_other_rows_end_the_run(jobs: Path) -> None:
    statuses, text = ended(jobs, "other rows")
    assert statuses == [2, 2]
    (told,) = {line.partition(" has ")[2] for line in text if line.startswith("error: ")}
    assert told.startswith("read other rows than those it shares rows out with; all of them must see the same files")


def test_a_run_goes_from_parts_of_rows_to_whole_ones(jobs: Path) -> None:
    """Four processes with sharded weights, one alone, two again: no row is seen twice or left out."""
    assert_runs_alike(jobs / "whole", jobs / "relay", but=NOT_COUNTED)


def test_what_a_step_holds_and_sends_is_foreseen_within_a_tenth(jobs: Path) -> None:
    """Of four processes with whole rows, parts of them, recomputed parts."""
    found = json.loads((jobs / "measure.lines").read_text())
    for line in found:
        foreseen, measured = line["sent"]
        assert measured == pytest.approx(foreseen, rel=1e-3)
        assert line["loss"] == pytest.approx(found[0]["loss"], rel=1e-5)
        foreseen, measured = line["held"]
        assert measured == pytest.approx(foreseen, rel=0.1)
    whole, parts, recomputed = (line["sent"][1] for line in found)
    assert whole < parts < recomputed


@pytest.mark.parametrize("job", KILLED)
def test_a_killed_process_ends_all_with_one_line(jobs: Path, job: str) -> None:
    """The others wait for its part of a row, forward or backward."""
    statuses, text = ended(jobs, job)
    assert statuses == [2, -9]
    (told,) = {line for line in text if "error: " in line}
    assert told.startswith("error: process 0 of 2 has lost another one: ")
    assert not any("Traceback" in line for line in text)


@given(st.integers(1, 4), st.integers(1, 5), st.integers(1, 3))
def test_parts_make_up_a_row(size: int, length: int, ahead: int) -> None:
    """Each with the bytes that its heads look ahead to."""
    row = torch.arange(size * length + ahead)[None]
    parts = [Part(i, size).of_row(row, ahead) for i in range(size)]
    assert torch.cat([part[:, :length] for part in parts], 1).tolist() == row[:, :-ahead].tolist()
    assert all(part.tolist() == [[*range(i * length, (i + 1) * length + ahead)]] for i, part in enumerate(parts))


def test_a_whole_row_is_nobody_elses_business() -> None:
    x = torch.ones(1, 2, 3, 4)
    assert WHOLE.to_heads(x) is x
    assert WHOLE.to_positions(x) is x
    assert ALONE.part() is WHOLE


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"train.context_parallel": 3}, "is 3, which does not divide the number of processes, 4"),
        ({"model.attention_heads": 2}, "is 4, which does not divide model.attention_heads, 2"),
        ({"model.kv_heads": 2}, "is 4, which does not divide the number of heads of keys and values, 2"),
        ({"train.seq_len": 18}, "is 4, which does not divide train.seq_len, 18"),
        ({"train.first_seq_len": 6}, "is 4, which does not divide train.first_seq_len, 6"),
        ({"model.order_head": True}, "an order head looks beyond its part of a row"),
        ({"train.tv_from": 0.5}, r"total variation \(train.tv_from\) looks beyond its part of a row"),
    ],
)
def test_rows_must_be_shared_out_evenly(values: dict[str, int], message: str) -> None:
    own = changed(PARTED, **{"train.context_parallel": 4})
    grouped(own, World(0, 4))
    with pytest.raises(UserError, match=message):
        grouped(changed(own, **values), World(0, 4))


def test_neighbours_read_the_same_rows() -> None:
    world = World(5, 8, 2)
    assert (world.reader, world.readers) == (2, 4)
    with pytest.raises(UserError, match="1 rows of 16 bytes each, which 4 groups of 2 processes cannot share evenly"):
        check_shares(changed(PARTED, **{"train.batch_size": 2, "train.first_seq_len": 0}), world)


def test_a_part_of_a_row_takes_a_part_of_the_memory() -> None:
    own = changed(PARTED, **{"train.batch_size": 4, "train.accumulate": 1, "train.far_rows": 1.0})
    whole = memory(own, torch.float32, 4).activations
    parts = changed(own, **{"train.context_parallel": 4, "train.batch_size": 1})
    assert memory(parts, torch.float32, 4).activations / activation_bytes(parts, 4) == pytest.approx(
        whole / activation_bytes(own, 4) / 4
    )

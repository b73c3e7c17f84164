"""Rows that repeat themselves: what they are made of, when, and by which processes."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from bytemtp.common.errors import UserError
from bytemtp.common.settings import DataConfig, ModelConfig, Settings, TrainConfig
from bytemtp.data.stream import Batch, Cursor
from bytemtp.training import trainer
from bytemtp.training.distributed import World
from bytemtp.training.repeats import SHORTEST, repeating_places, repeating_rows, with_repeats
from bytemtp.training.trainer import train


@st.composite
def batches(draw: st.DrawFn, multiple: int = 1) -> Batch:
    """Rows of text with ends of documents here and there."""
    rows, width = multiple * draw(st.integers(1, 3)), draw(st.integers(7, 150))
    octets = torch.randint(1, 256, (rows, width), generator=torch.Generator().manual_seed(draw(st.integers(0, 99))))
    ends = draw(st.lists(st.tuples(st.integers(0, rows - 1), st.integers(0, width - 1)), max_size=5, unique=True))
    eots = torch.tensor(ends, dtype=torch.int64).reshape(-1, 2)
    octets[tuple(eots.T)] = 0
    return Batch(octets.to(torch.uint8), eots, torch.full((rows,), width), Cursor(0, 0, 0, 0, 0, 0, 0, ""))


@given(batches(multiple=4), st.integers(0, 4), st.sampled_from([1, 2, 4]), st.integers(0, 9))
def test_the_last_rows_of_micro_batches_repeat_and_the_others_stay(
    batch: Batch, count: int, parts: int, step: int
) -> None:
    """Of each micro-batch as many, or one more in the first of them."""
    made = with_repeats(batch, count, parts, (1, step))
    size = len(batch.octets) // parts
    for row in range(len(batch.octets)):
        part, place = divmod(row, size)
        if place < size - (count // parts + (part < count % parts)):
            assert made.ids[row].equal(batch.ids[row]) and made.document_ids[row].equal(batch.document_ids[row])
            continue
        eot, *octets = made.ids[row].tolist()
        there = set(batch.octets[row].tolist())
        assert eot == 256 and set(octets) <= (there - {0} or {0})  # ends of documents are no bytes
        assert any(octets[p:] == octets[:-p] for p in range(SHORTEST, len(octets) // 2 + 2))
        assert set(made.document_ids[row].tolist()) == {1}
    assert made.cursor == batch.cursor and made.octets.dtype == batch.octets.dtype


@given(batches(multiple=12), st.integers(1, 6), st.sampled_from([1, 2]), st.sampled_from([2, 3]))
def test_processes_make_of_their_shares_what_one_makes_of_the_whole(
    batch: Batch, count: int, parts: int, size: int
) -> None:
    whole = with_repeats(batch, count, parts, (0, 7))
    for rank in range(size):
        of_rank = batch.eots[:, 0] % size == rank
        eots = batch.eots[of_rank] // torch.tensor([size, 1])
        share = replace(batch, octets=batch.octets[rank::size], eots=eots, lengths=batch.lengths[rank::size])
        made = with_repeats(share, count, parts, (0, 7), World(rank, size))
        assert made.ids.equal(whole.ids[rank::size]) and made.document_ids.equal(whole.document_ids[rank::size])


def test_periods_are_of_all_lengths_and_mostly_short() -> None:
    places = repeating_places(1000, 64, (0, 0))
    shortest = [next(p for p in range(1, 64) if (row[p:] == row[:-p]).all()) for row in places]
    assert min(shortest) == SHORTEST and max(shortest) == 31
    assert 400 < sum(p < 10 for p in shortest) < 600
    assert set(places.ravel().tolist()) == set(range(64))


@pytest.mark.parametrize(("done", "expected"), [(0.0, 3), (0.59, 3), (0.6, 0), (1.0, 0)])
def test_rows_repeat_for_a_share_of_the_run(done: float, expected: int) -> None:
    assert repeating_rows(TrainConfig(repeat_rows=0.125), 24, done) == expected
    assert repeating_rows(TrainConfig(repeat_rows=0.01), 24, 0.0) == 1
    assert repeating_rows(TrainConfig(), 24, done) == 0


@pytest.mark.parametrize(("share", "by_rows"), [(0.25, [0, 1, 1, 1, 1, 2]), (1.0, [0, 1, 2, 3, 4, 5])])
def test_some_row_is_always_of_the_corpus(share: float, by_rows: list[int]) -> None:
    """Counted in each micro-batch and rounded up, as it once was, all rows of a batch repeated if they came one by one:
    for a tenth of a run nothing was learnt."""
    assert [repeating_rows(TrainConfig(repeat_rows=share), rows, 0.0) for rows in range(1, 7)] == by_rows


def test_a_run_reads_them_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The text is the alphabet over and over; rows that are not, repeat random bytes (or hold the document's end)."""
    (tmp_path / "text").write_bytes(bytes(range(97, 123)) * 400)
    shape = ModelConfig(dim=16, layers=1, attention_heads=1, ffn_dim=24, n_future=1)
    plan = TrainConfig(
        steps=10, batch_size=8, accumulate=2, seq_len=16, repeat_rows=0.25, dtype="float32", compile="false",
        sample_bytes=0, valid_every=0,
    )  # fmt: skip
    seen: list[int] = []

    def count(model: object, ids: Tensor, document_ids: Tensor, **options: object) -> object:
        alphabet = (ids[:, 1:] - ids[:, :-1]) % 26 == 1
        seen.append(int((~alphabet.all(1)).sum()))
        return real(model, ids, document_ids, **options)

    real = trainer.backward
    monkeypatch.setattr(trainer, "backward", count)
    settings = Settings(shape, plan, DataConfig(valid_fraction=0.0))
    train(settings, [str(tmp_path / "text")], tmp_path / "run", device="cpu")
    assert len(seen) == 20 and all(1 <= rows <= 2 for rows in seen[:12]) and sum(seen[12:]) < 4
    said = capsys.readouterr().err
    assert "random bytes that repeat: 2 of a batch's 8 rows, from step 1 on" in said
    assert "random bytes that repeat: 0 of a batch's 8 rows, from step 7 on" in said
    for stop_after in (4, 0):
        train(
            settings,
            [str(tmp_path / "text")],
            tmp_path / "b",
            device="cpu",
            stop_after=stop_after,
            resume=not stop_after,
        )
    said = capsys.readouterr().err
    assert said.count("random bytes that repeat") == 2 and "0 of a batch's 8 rows, from step 7 on" in said


@pytest.mark.parametrize("name", ["repeat_rows", "repeat_until"])
def test_shares_are_checked(name: str) -> None:
    with pytest.raises(UserError, match=rf"train.{name} is 1.5; it must be from 0 to 1"):
        TrainConfig(**{name: 1.5})

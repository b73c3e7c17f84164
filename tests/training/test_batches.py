"""Which rows a run trains and validates on: epochs, files for validation, rows that grow."""

import gzip
import json
import math
import random
import re
import sys
from functools import reduce
from operator import add
from pathlib import Path
from typing import Any

import pytest
import torch

from bytemtp.common.errors import UserError
from bytemtp.common.presets import PRESETS
from bytemtp.common.settings import Settings, TrainConfig, changed, flatten, load_settings
from bytemtp.data.stream import Batch
from bytemtp.model.checkpoint import best, load_model, load_state
from bytemtp.model.model import ByteMTP
from bytemtp.train import main
from bytemtp.training.batches import (
    check_paths,
    collect_valid,
    count_rows,
    far_rows_at,
    for_drafts_at,
    mean_batch_bytes,
    nothing,
    seq_len_at,
    with_steps_of_epochs,
)
from bytemtp.training.distributed import ALONE
from bytemtp.training.loss import HeadLosses, evaluate
from bytemtp.training.repeats import repeating_rows
from bytemtp.training.start import for_frozen_trunk
from bytemtp.training.trainer import Trainer, train
from tests.training.runs import SETTINGS, WORDS, lines, settings, steps_of, weights, without_clock


def test_epochs_become_steps(corpus: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The run ends with the batch that holds the last row of the last epoch, and its schedule is that of its steps."""
    steps = steps_of(corpus, epochs=2)
    outcome = train(settings(epochs=2, steps=7), [corpus], tmp_path / "epochs", device="cpu")
    assert (outcome.finished, outcome.state.step) == (True, steps)
    assert outcome.state.cursor is not None
    assert outcome.state.cursor["epoch"] == 2
    assert lines(tmp_path / "epochs")[-1]["epoch"] == 2
    assert f"train.epochs 2: {steps} steps of 4 x 32 bytes" in capsys.readouterr().err
    saved, _ = load_settings(tmp_path / "epochs" / "config.toml")
    assert (saved.train.epochs, saved.train.steps) == (2, steps)
    train(settings(steps=steps), [corpus], tmp_path / "steps", device="cpu")
    assert weights(tmp_path / "epochs") == weights(tmp_path / "steps")


def test_a_run_by_epochs_is_resumed_without_counting_again(
    corpus: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    train(settings(epochs=2), [corpus], whole, device="cpu")
    train(settings(epochs=2), [corpus], cut, device="cpu", stop_after=5)
    capsys.readouterr()
    main(["--out", str(cut), "--resume", "--device=cpu", "--stop-after=15"])
    train(settings(epochs=2), [], cut, device="cpu", resume=True)  # these settings name other steps
    assert "counting" not in capsys.readouterr().err
    assert weights(cut) == weights(whole)
    assert without_clock(cut) == without_clock(whole)


def test_a_run_by_epochs_may_get_another_length(
    corpus: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    train(settings(epochs=1, warmup=1), [corpus], run, device="cpu", stop_after=4)
    main(["--out", str(run), "--resume", "--device=cpu", "--train.epochs=2"])
    assert load_settings(run / "config.toml")[0].train.steps == steps_of(corpus, epochs=2)
    train(settings(epochs=2, warmup=1), [corpus], tmp_path / "other", device="cpu")
    assert weights(run) == weights(tmp_path / "other")
    main(["--out", str(run), "--resume", "--device=cpu", "--train.steps=50"])
    assert "set train.epochs to 0, too" in capsys.readouterr().err
    assert load_settings(run / "config.toml")[0].train.steps == steps_of(corpus, epochs=2)
    main(["--out", str(run), "--resume", "--device=cpu", "--train.steps=50", "--train.epochs=0"])
    saved, _ = load_settings(run / "config.toml")
    assert (saved.train.epochs, saved.train.steps) == (0, 50)
    assert lines(run)[-1]["step"] == 50


def test_a_run_by_minutes_says_why_it_takes_no_steps(
    corpus: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It was finished at once, without a word."""
    train(settings(minutes=0.01, steps=10**9, valid_every=0), [corpus], tmp_path / "run", device="cpu")
    capsys.readouterr()
    main(["--out", str(tmp_path / "run"), "--resume", "--device=cpu", "--train.steps=50"])
    assert "the run ends by train.minutes 0.01; to go by train.steps, set train.minutes to 0, too" in (
        capsys.readouterr().err
    )


def test_epochs_of_standard_input(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is kept before it is counted, and read once."""
    (tmp_path / "text").write_bytes(b"abcdefgh" * 100)
    with (tmp_path / "text").open() as file:
        monkeypatch.setattr(sys, "stdin", file)
        outcome = train(settings(epochs=3), ["-"], tmp_path / "run", device="cpu")
    assert outcome.state.step == math.ceil(3 * 801 / (4 * 32))


def test_sweeps_are_chosen_once_and_kept(tmp_path: Path) -> None:
    """A corpus beyond one buffer of rows is swept more often, and the resumed run goes on in the same order."""
    path = tmp_path / "text.txt"
    path.write_bytes(random.Random(0).randbytes(20 << 20))
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    train(settings(steps=4), [str(path)], whole, device="cpu")
    assert load_settings(whole / "config.toml")[0].data.sweeps == 3
    train(settings(steps=4), [str(path)], cut, device="cpu", stop_after=2)
    main(["--out", str(cut), "--resume", "--device=cpu"])
    assert weights(cut) == weights(whole)


def held_out(folder: Path) -> str:
    path = folder / "held-out.jsonl"
    path.write_text("".join(json.dumps({"text": word * 20}) + "\n" for word in WORDS))
    return str(path)


def test_files_can_be_named_for_validation(corpus: str, tmp_path: Path) -> None:
    """They are validated on, all of PATH is trained on, and a resumed run does the same."""
    run, cut = tmp_path / "run", tmp_path / "cut"
    named = changed(settings(valid_bytes=10**6), **{"data.valid_paths": [held_out(tmp_path)]})
    outcome = train(named, [corpus], run, device="cpu")
    assert outcome.valid is not None
    assert outcome.valid.counts[0] == sum(20 * len(word) + 1 for word in WORDS) - 1  # the first id is no target
    assert outcome.valid.end_counts[0] == len(WORDS)
    train(named, [corpus], cut, device="cpu", stop_after=5)
    main(["--out", str(cut), "--resume", "--device=cpu"])
    assert without_clock(cut) == without_clock(run)
    whole_corpus = changed(settings(), **{"data.valid_fraction": 0.0})
    train(whole_corpus, [corpus], tmp_path / "other", device="cpu")
    assert weights(run) == weights(tmp_path / "other")
    with pytest.raises(UserError, match=r"data.valid_paths is \(\) but the run was made with \('.*held-out.jsonl',\)"):
        train(settings(valid_bytes=10**6), [], cut, device="cpu", resume=True)


def test_wrong_validation_files_are_told_before_anything_is_written(corpus: str, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(Path(corpus) / "00.txt")
    (tmp_path / "hard").hardlink_to(Path(corpus) / "00.txt")
    also = "is also among the files to train on; name PATHs that leave"
    for path, message in {
        str(tmp_path / "misspelt"): "data.valid_paths: .*misspelt: no such file or folder",
        str(tmp_path / "link"): f"data.valid_paths: .*link {also}",
        str(tmp_path / "hard"): f"data.valid_paths: .*hard {also}",
        f"file://{corpus}/00.txt": f"data.valid_paths: .*00.txt {also}",
    }.items():
        with pytest.raises(UserError, match=message):
            train(changed(SETTINGS, **{"data.valid_paths": [path]}), [corpus], tmp_path / "run", device="cpu")
    assert not (tmp_path / "run").exists()


def test_without_validation_documents_training_goes_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "one.txt").write_bytes(b"abcdefgh" * 100)
    outcome = train(settings(steps=3), [str(tmp_path / "one.txt")], tmp_path / "run", device="cpu")
    assert outcome.valid is None
    assert "no document fell into the validation split" in capsys.readouterr().err
    assert {line["split"] for line in lines(tmp_path / "run")} == {"train"}


def test_a_batch_with_nothing_in_it_adds_nothing() -> None:
    """A process that shares weights validates as often as the others, though it may have fewer rows."""
    model, batch = ByteMTP(SETTINGS.model), nothing(SETTINGS)
    losses = evaluate(model, batch.ids, batch.document_ids, model.layout(1, SETTINGS.train.seq_len, batch.document_ids))
    none = HeadLosses.none(2, model.device)
    assert all(torch.equal(one, other) for one, other in zip(vars(losses).values(), vars(none).values(), strict=True))
    assert count_rows([batch], ALONE) == 0


@pytest.mark.parametrize(("accumulate", "rows"), [(1, 4), (2, 4), (4, 3)])
def test_validation_reads_its_bytes_in_rounds(corpus: str, accumulate: int, rows: int) -> None:
    """As many batches as cover train.valid_bytes, each of the rows that a round of training has."""
    batches = collect_valid(settings(valid_bytes=96, accumulate=accumulate), [corpus], pin_memory=False)
    assert {len(batch.octets) for batch in batches} == {4 // accumulate}
    assert sum(len(batch.octets) for batch in batches) == rows


@pytest.mark.parametrize(("preset", "kib"), [("nano", 32), ("tiny", 256), ("small", 256), ("300m", 256)])
def test_presets_validate_on_enough_bytes(preset: str, kib: int, corpus: str, tmp_path: Path) -> None:
    """Eight batches of 4 x 512 bytes, as it once was, are 16 KiB: too few to tell two models apart."""
    (tmp_path / "held-out").write_bytes(bytes(400 << 10))
    named = changed(PRESETS[preset], **{"data.valid_paths": [str(tmp_path / "held-out")]})
    batches = collect_valid(named, [corpus], pin_memory=False)
    size = sum(len(batch.octets) for batch in batches) * named.train.seq_len
    round_bytes = named.train.batch_size // named.train.accumulate * named.train.seq_len
    assert kib << 10 <= size < (kib << 10) + round_bytes


def weights_of(plan: Settings, corpus: str, run: Path) -> str:
    train(plan, [corpus], run, device="cpu")
    return weights(run)


@pytest.mark.parametrize(("step", "second", "minutes", "expected"), [
    (0, 0.0, 0.0, 16), (69, 99.0, 0.0, 16), (70, 0.0, 0.0, 64), (90, 41.0, 1.0, 16), (9, 42.0, 1.0, 64),
])  # fmt: skip
def test_when_rows_grow(step: int, second: float, minutes: float, expected: int) -> None:
    plan = TrainConfig(steps=100, minutes=minutes, seq_len=64, first_seq_len=16, grow_at=0.7)
    assert seq_len_at(plan, step, second) == expected


def test_rows_grow_and_a_cut_run_is_still_the_same(corpus: str, tmp_path: Path) -> None:
    """Rows of 8 bytes for 6 of 12 steps, then of 32, and some that repeat: cut before, at and after the change."""
    growing = settings(first_seq_len=8, grow_at=0.5, repeat_rows=0.3, repeat_until=0.8)
    train(growing, [corpus], tmp_path / "whole", device="cpu")
    for i, cut in enumerate([2, 6, 8]):
        train(growing, [corpus], tmp_path / "cut", device="cpu", stop_after=cut, resume=i > 0)
        assert load_model(tmp_path / "cut").trained_length == (32 if cut > 6 else 8)
    train(growing, [], tmp_path / "cut", device="cpu", resume=True)
    assert weights(tmp_path / "cut") == weights(tmp_path / "whole")
    assert weights(tmp_path / "cut") != weights_of(settings(), corpus, tmp_path / "plain")
    assert {line["bytes_seen"] // line["step"] for line in lines(tmp_path / "whole") if line["step"]} == {4 * 32}


@pytest.mark.parametrize(
    ("changes", "longer"),
    [
        ({"first_seq_len": 8, "grow_at": 0.5, "schedule": "wsd", "decay": 0.1}, {"steps": 24}),
        ({"head_schedule": "anneal", "schedule": "wsd", "decay": 0.1}, {"steps": 24}),
        ({"far_from": 0.5, "schedule": "wsd", "decay": 0.1}, {"steps": 24}),
        ({"tv_from": 0.5, "schedule": "wsd", "decay": 0.1}, {"steps": 24}),
        ({"repeat_rows": 0.3, "repeat_until": 0.5, "schedule": "wsd", "decay": 0.1}, {"steps": 24}),
        ({"first_seq_len": 8, "grow_at": 0.01, "minutes": 0.01}, {"minutes": 0.02}),
    ],
    ids=["rows", "heads", "far heads", "drafts", "repeats", "minutes"],
)
def test_a_prolonged_run_keeps_long_rows_and_tells(
    corpus: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], changes: dict[str, Any], longer: dict[str, Any]
) -> None:
    """12 steps are 9 of short rows where there are to be 24 in all; the rate is the same to step 9 in both."""
    short = settings(**changes)
    done = train(short, [corpus], tmp_path / "run", device="cpu", stop_after=0 if short.train.minutes else 8).state
    capsys.readouterr()
    plan = changed(short, **{f"train.{name}": value for name, value in longer.items()})
    state = train(plan, [], tmp_path / "run", device="cpu", resume=True, stop_after=done.step + 1).state
    assert (state.seq_len, state.step) == (32, done.step + 1)
    assert "followed the schedule of the old" in capsys.readouterr().err


def test_heads_wait_and_once_they_learn_go_on(corpus: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Six steps of 12 without them; prolonged to 24 steps, of which eight are done, they do not stop again."""
    train(settings(far_from=0.5, log_every=1), [corpus], tmp_path / "run", device="cpu", stop_after=8)
    longer = settings(far_from=0.5, log_every=1, steps=24)
    train(longer, [], tmp_path / "run", device="cpu", resume=True, stop_after=10)
    second = [line["bpb_per_head"][1] for line in lines(tmp_path / "run") if line["split"] == "train"]
    assert [bits is None for bits in second] == [True] * 6 + [False] * 4
    valid = [line["bpb_per_head"][1] for line in lines(tmp_path / "run") if line["split"] == "valid"]
    assert [bits is None for bits in valid] == [True, False]  # after steps 5 and 10
    assert load_state(best(tmp_path / "run")).best_step == 10  # a model without its heads is no best one
    assert capsys.readouterr().err.count("heads 2 to 2 learn from step 7 on") == 1


def test_heads_learn_to_be_accepted_when_it_is_time(
    corpus: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train(settings(tv_from=0.5), [corpus], tmp_path / "run", device="cpu")
    assert "heads 2 to 2 learn to be accepted as drafts from step 7 on" in capsys.readouterr().err
    train(settings(tv_from=0.5, far_from=0.75), [corpus], tmp_path / "later", device="cpu")
    assert "to be accepted as drafts from step 10 on" in capsys.readouterr().err
    assert not for_drafts_at(settings().train, 1.0)  # a run by the clock may go beyond its end


def test_far_heads_begin_when_it_is_time() -> None:
    plan = settings(far_from=0.5, far_rows=0.25).train
    assert (far_rows_at(plan, 0.4), far_rows_at(plan, 0.5)) == (0, 0.25)


def test_with_a_frozen_trunk_heads_learn_at_once_and_from_all_rows() -> None:
    """Rows are long from the first step, too: a run that is stopped early must write what its source writes."""
    plan = settings(far_from=0.5, far_rows=0.25, first_seq_len=8, repeat_rows=0.25)
    assert for_frozen_trunk(plan) == plan
    frozen = for_frozen_trunk(changed(plan, **{"train.freeze": "trunk"})).train
    assert (far_rows_at(frozen, 0.0), seq_len_at(frozen, 0, 0.0), repeating_rows(frozen, 24, 0.0)) == (1.0, 32, 0)


def test_an_epoch_is_read_in_rows_that_do_not_divide_long_ones(corpus: str, tmp_path: Path) -> None:
    uneven = settings(epochs=1, first_seq_len=20, grow_at=0.5)
    planned = with_steps_of_epochs(uneven, [corpus])
    ids = planned.train.steps * mean_batch_bytes(planned.train)
    assert mean_batch_bytes(planned.train) == 4 * (20 + 32) / 2
    assert ids == pytest.approx(4 * 32 * steps_of(corpus, epochs=1), abs=2 * 4 * 32)


def test_passes_over_the_data_are_counted_across_rows_that_grow(corpus: str, tmp_path: Path) -> None:
    plan = settings(first_seq_len=8, grow_at=0.5, steps=300, valid_every=0, checkpoint_every=300, log_every=1)
    train(plan, [corpus], tmp_path / "run", device="cpu", stop_after=200)
    train(plan, [], tmp_path / "run", device="cpu", resume=True)
    epochs = [line["epoch"] for line in lines(tmp_path / "run") if line["split"] == "train"]
    assert epochs == sorted(epochs) and epochs[149] > 0
    assert epochs[150] == epochs[149] and epochs[-1] > epochs[150]


def test_short_rows_are_validated_with_a_window_of_their_length(corpus: str, tmp_path: Path) -> None:
    """And are not compared with what the model can do once it has seen longer ones."""
    growing = settings(first_seq_len=8, grow_at=0.5, valid_every=3)
    train(growing, [corpus], tmp_path / "run", device="cpu")
    valid = {line["step"]: line["bpb_per_head"] for line in lines(tmp_path / "run") if line["split"] == "valid"}
    train(growing, [corpus], tmp_path / "short", device="cpu", stop_after=3)
    model = load_model(tmp_path / "short")
    rows = collect_valid(growing, [corpus], pin_memory=False)

    def bits(window: int) -> list[float]:
        layouts = [model.layout(len(x.ids), growing.train.seq_len, x.document_ids, window) for x in rows]
        losses = [evaluate(model, x.ids, x.document_ids, there) for x, there in zip(rows, layouts, strict=True)]
        return reduce(add, losses).bits_per_byte

    assert valid[3] == pytest.approx(bits(8)) and valid[3] != pytest.approx(bits(0))
    assert best(tmp_path / "short") is None and best(tmp_path / "run") is not None


def test_growing_rows_that_are_not_shuffled_go_on_where_short_ones_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They began with the first file again, and a run shorter than a pass never saw the last ones."""
    for i in range(10):
        (tmp_path / f"{i}.txt").write_bytes(b"".join(b"%06d\n" % (1000 * i + j) for j in range(1000)))
    plan = changed(settings(first_seq_len=8, grow_at=0.5), **{"data.shuffle": False})
    seen: list[int] = []
    original = Trainer._with_repeats
    monkeypatch.setattr(Trainer, "_with_repeats", lambda self, batch: original(self, noted(seen, batch)))
    train(plan, [str(tmp_path)], tmp_path / "run", device="cpu", stop_after=6)
    train(plan, [], tmp_path / "run", device="cpu", resume=True)
    assert 90 <= seen[6] - seen[0] <= 110  # 6 steps of 128 bytes, seven bytes a number
    assert len(seen) == 12 and seen == sorted(seen)


def noted(seen: list[int], batch: Batch) -> Batch:
    """The first number in it that is whole."""
    found = [re.search(rb"\n(\d{6})\n", row.numpy().tobytes()) for row in batch.octets]
    seen.append(next(int(number[1]) for number in found if number))
    return batch


def test_validation_files_that_are_left_out_are_told(
    corpus: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "good.txt").write_bytes(b"good " * 100)
    (tmp_path / "bad.txt.gz").write_bytes(gzip.compress(b"bad " * 100)[:-9])
    named = {"data.valid_paths": [str(tmp_path / "good.txt"), str(tmp_path / "bad.txt.gz")], "data.on_corrupt": "skip"}
    collect_valid(changed(settings(valid_bytes=10**6), **named), [corpus], pin_memory=False)
    assert re.search(r"left out of validation: .*bad.txt.gz: ", capsys.readouterr().err)
    (tmp_path / "link").symlink_to(tmp_path / "nothing")
    named["data.valid_paths"] = [str(tmp_path / "good.txt"), str(tmp_path / "link")]
    check_paths([corpus], changed(settings(), **named))


def test_heads_on_head_1s_path_have_learned_from_the_start(corpus: str, tmp_path: Path) -> None:
    """Whatever `far_from` says; no validation before it counted as the best."""
    plan = changed(settings(far_from=0.9), **{"model.topology": "anticausal"})
    train(plan, [corpus], tmp_path / "run", device="cpu", stop_after=6)
    assert best(tmp_path / "run") is not None


def test_a_short_run_says_which_heads_have_not_learned(
    corpus: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = settings(far_from=1.0, steps=2)
    main([corpus, f"--out={tmp_path / 'run'}", "--preset=nano", "--device=cpu", *options_of(plan)])
    assert re.search(r"validation, bits per byte by head: \d\.\d+ -\n", capsys.readouterr().err)


def options_of(plan: Settings) -> list[str]:
    """The command line's."""
    found = {name: value for name, value in flatten(plan).items() if value != flatten(PRESETS["nano"])[name]}
    return [f"--{name}={str(value).lower() if isinstance(value, bool) else value}" for name, value in found.items()]

"""A run and the files it was made of: changes are noticed, runs are no corpus, and what was trained survives."""

import gzip
import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from bytemtp.common.errors import UserError
from bytemtp.common.settings import DataConfig, ModelConfig, Settings, TrainConfig, changed, load_settings
from bytemtp.data.sources import SkipLog, find
from bytemtp.model.checkpoint import best, latest, load_model, load_state
from bytemtp.train import main
from bytemtp.training.corpus import _when
from bytemtp.training.trainer import train

SETTINGS = Settings(
    ModelConfig(dim=16, layers=2, attention_heads=2, ffn_dim=24, n_future=2),
    TrainConfig(steps=6, batch_size=4, seq_len=32, warmup=2, dtype="float32", compile="false", sample_bytes=0),
    DataConfig(valid_fraction=0.2),
)


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    folder = tmp_path / "corpus"
    folder.mkdir()
    for i in range(8):
        (folder / f"{i}.txt").write_bytes(b"some words of file %d, " % i * 20)
    return folder


def data(**values: Any) -> Settings:
    return changed(SETTINGS, **{f"data.{name}": value for name, value in values.items()})


def start(run: Path, *paths: Path | str, settings: Settings = SETTINGS, **options: Any) -> None:
    train(settings, [*map(str, paths)], run, device="cpu", **{"stop_after": 3} | options)


def resume(run: Path, **values: Any) -> None:
    settings, _ = load_settings(run / "config.toml")
    train(changed(settings, **values), [], run, device="cpu", resume=True)


def rewrite(path: Path, content: bytes) -> None:
    """Write a file again, at another time."""
    before = path.stat().st_mtime_ns if path.exists() else 0
    path.write_bytes(content)
    os.utime(path, ns=(before + 10**9, before + 10**9))


def longer(folder: Path) -> str:
    rewrite(folder / "3.txt", (folder / "3.txt").read_bytes() + b"more")
    return r"3\.txt has 444 bytes, and had 440"


def shorter(folder: Path) -> str:
    rewrite(folder / "3.txt", b"less")
    return r"3\.txt has 4 bytes, and had 440"


def another(folder: Path) -> str:
    rewrite(folder / "3.txt", (folder / "3.txt").read_bytes().upper())
    return r"3\.txt was written again \(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d, before: "


def gone(folder: Path) -> str:
    (folder / "3.txt").unlink()
    return r"3\.txt is gone"


def new(folder: Path) -> str:
    (folder / "33.txt").write_bytes(b"new words " * 50)
    return r"33\.txt is new"


def renamed(folder: Path) -> str:
    (folder / "3.txt").rename(folder / "33.txt")
    return r"3\.txt is gone \(and 1 more changed files\)"


@pytest.mark.parametrize("change", [longer, shorter, another, gone, new, renamed])
def test_a_changed_corpus_is_noticed(
    change: Any, corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    start(run, corpus)
    message = change(corpus)
    with pytest.raises(UserError, match=f"the data is not what the run began with: {message}") as raised:
        resume(run)
    assert str(raised.value).endswith("; restore it, or go on all the same with --data.on-change warn")
    capsys.readouterr()
    resume(run, **{"data.on_change": "warn"})
    assert "warning: the data is not what the run began with: " in (told := capsys.readouterr().err)
    assert ("the next epoch of the files" in told) == (change is not another)
    resume(run, **{"data.on_change": "error"})  # the files are now those that it goes on with
    assert "warning: the data" not in capsys.readouterr().err


def test_changed_files_are_written_down_with_the_first_checkpoint_of_them(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """They were if no step was taken, and then the cursor belonged to other files; and not if the run was killed."""
    run = tmp_path / "run"
    start(run, corpus)
    before = (run / "corpus.jsonl").read_bytes()
    new(corpus)
    settings = changed(load_settings(run / "config.toml")[0], **{"data.on_change": "warn"})
    train(settings, [], run, device="cpu", resume=True, stop_after=3)
    assert (run / "corpus.jsonl").read_bytes() == before
    monkeypatch.setattr("bytemtp.training.trainer.Trainer._is_finished", killed_after(run, step=5))
    with pytest.raises(KeyboardInterrupt):
        resume(run, **{"train.checkpoint_every": 1})
    monkeypatch.undo()
    assert b"33.txt" in (run / "corpus.jsonl").read_bytes()
    capsys.readouterr()
    resume(run)
    assert "warning: the data" not in capsys.readouterr().err


def killed_after(run: Path, step: int) -> Any:
    """In place of `Trainer._is_finished`."""

    def check(trainer: Any) -> bool:
        if trainer.state.step > step:
            raise KeyboardInterrupt
        return False

    return check


def test_an_unchanged_corpus_may_move_and_old_runs_know_none(corpus: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    start(run, corpus)
    corpus.rename(tmp_path / "elsewhere")
    train(SETTINGS, [str(tmp_path / "elsewhere")], run, device="cpu", resume=True, stop_after=4)
    (run / "corpus.jsonl").unlink()
    resume(run)
    assert (run / "corpus.jsonl").exists()


@pytest.mark.parametrize(
    "damaged",
    [
        b'{"file": "0.t',
        b"[1]",
        b'{"size": 3}',
        b"[" * 3000,
        *({"modified": x} for x in (None, 5)),
        {"size": "x"},
        {"size": None},
    ],
)
def test_a_damaged_list_of_files_is_told(damaged: bytes | dict[str, Any], corpus: Path, tmp_path: Path) -> None:
    """It ended with a traceback.  Without the list a run goes on, as those of old versions do."""
    run = tmp_path / "run"
    start(run, corpus)
    first, *others = (run / "corpus.jsonl").read_bytes().splitlines()
    line = damaged if isinstance(damaged, bytes) else json.dumps(json.loads(first) | damaged).encode()
    (run / "corpus.jsonl").write_bytes(b"\n".join([line, *others, b""]))
    with pytest.raises(UserError, match=r"corpus\.jsonl is damaged \(.*\); delete it to go on without comparing"):
        resume(run)
    (run / "corpus.jsonl").unlink()
    resume(run)


def test_tags_of_servers_are_no_times() -> None:
    """One of 22 digits was taken for the year 318857."""
    tags = ["9" * 22, "W/abc", "5" * 5000, "-5", "1_0", " 7"]
    assert [*map(_when, tags)] == tags
    assert _when("0").startswith(("1970-01-01", "1969-12-31"))


def test_files_of_one_name_are_told_apart(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in "ab":
        (tmp_path / name).mkdir()
        (tmp_path / name / "x.txt").write_text("of one name, " * 40)
    run = tmp_path / "run"
    start(run, tmp_path / "a", tmp_path / "b")
    (tmp_path / "a" / "x.txt").write_text("and longer, " * 60)
    os.utime(tmp_path / "b" / "x.txt", ns=(1, 1))
    resume(run, **{"data.on_change": "warn"})
    assert "the next epoch of the files" in capsys.readouterr().err


def test_changed_held_out_files_are_noticed(corpus: Path, tmp_path: Path) -> None:
    """And a folder of them inside the corpus is not trained on, but validated on."""
    (corpus / "valid").mkdir()
    (corpus / "valid/v.txt").write_bytes(b"held out, " * 50)
    named = data(valid_paths=[str(corpus / "valid")], valid_fraction=0.0)
    start(tmp_path / "run", corpus, settings=named)
    (corpus / "valid/v.txt").rename(tmp_path / "v.txt")
    (corpus / "valid/v.txt").write_bytes(b"held out.")
    with pytest.raises(UserError, match=r"v\.txt \(held out\) has 9 bytes, and had 500"):
        resume(tmp_path / "run")
    with pytest.raises(UserError, match=r"is also among the files to train on"):
        start(tmp_path / "other", corpus / "valid/v.txt", settings=named)


def test_runs_inside_the_corpus_are_no_corpus(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """`train . --out runs/a` used to read its own files, and could not be resumed."""
    monkeypatch.chdir(corpus)
    start(Path("runs/first"), ".")
    start(Path("runs/second"), ".")
    assert "data: 8 files in .; left out: run folder" in capsys.readouterr().err
    monkeypatch.chdir(tmp_path)
    for name in ("first", "second"):
        resume(corpus / "runs" / name)
    start(tmp_path / "outside", corpus, stop_after=0)
    assert weights(corpus / "runs/first") == weights(corpus / "runs/second") == weights(tmp_path / "outside")


def weights(run: Path) -> bytes:
    folder = latest(run)
    assert folder is not None
    return (folder / "model.safetensors").read_bytes()


def test_a_run_is_resumed_from_anywhere(corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(corpus)
    (tmp_path / "v.txt").write_bytes(b"held out, " * 50)
    start(tmp_path / "run", "[0-6].txt", "7.txt", settings=data(valid_paths=["../v.txt"], valid_fraction=0.0))
    monkeypatch.chdir(tmp_path)
    settings, info = load_settings(tmp_path / "run/config.toml")
    assert info["paths"] == [str(corpus / "[0-6].txt"), str(corpus / "7.txt")]
    assert settings.data.valid_paths == (str(tmp_path / "v.txt"),)
    main(["--out", "run", "--resume", "--device=cpu", "--data.valid-paths", "v.txt"])


UNREADABLE = {
    "damaged": (b"no gzip at all", "bad.gz: is damaged"),
    "no lines": (b'{"body": "a"}\n', "bad.jsonl: line 1 has no field 'text'"),
    "nothing": (b"", "the corpus holds no byte"),
    "tiny": (b"a", "the corpus has 2 ids, less than one row"),
}


@pytest.mark.parametrize("kind", UNREADABLE)
def test_overwriting_needs_a_batch(kind: str, corpus: Path, tmp_path: Path) -> None:
    """The old run used to be deleted as soon as the files were there."""
    run, bad = tmp_path / "run", tmp_path / "bad"
    start(run, corpus)
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    bad.mkdir()
    content, message = UNREADABLE[kind]
    (bad / message.partition(":")[0].replace(" ", "")).write_bytes(content)
    for settings in (data(valid_fraction=0.0), changed(data(valid_fraction=0.0), **{"train.epochs": 2})):
        with pytest.raises(UserError, match=message):
            start(run, bad, settings=settings, overwrite=True)
    if kind != "tiny":  # it is enough to validate on
        with pytest.raises(UserError, match=message):
            start(run, corpus, settings=data(valid_paths=[str(bad)], valid_fraction=0.0), overwrite=True)
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before
    load_model(run)
    start(run, corpus, overwrite=True)


def test_a_corpus_has_to_fill_a_row_of_full_length_before_rows_have_grown(corpus: Path, tmp_path: Path) -> None:
    """It was found out in mid-run, and then every resume ended there."""
    growing = changed(data(valid_fraction=0.0), **{"train.first_seq_len": 32, "train.seq_len": 8192})
    with pytest.raises(UserError, match=r"the corpus has [\d,]+ ids, less than one row of 8"):
        start(tmp_path / "run", corpus, settings=growing)
    assert not (tmp_path / "run/config.toml").exists()


def test_a_run_that_met_a_damaged_file_goes_on_without_it(corpus: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    for i in range(40):
        (corpus / f"a{i}.txt").write_bytes(b"more words, " * 200)
    (corpus / "z.gz").write_bytes(gzip.compress(os.urandom(5000))[:-10])
    with pytest.raises(UserError, match=r"z\.gz: is truncated"):
        start(run, corpus, settings=data(shuffle=False, valid_fraction=0.0), stop_after=0)
    resume(run, **{"data.on_corrupt": "skip"})
    assert latest(run) == run / "checkpoints/step-00000006"


def test_overwriting_by_standard_input(corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = tmp_path / "run"

    class Input(io.BytesIO):
        isatty = staticmethod(lambda: False)
        buffer = property(lambda self: self)

    def pipe(content: bytes) -> None:
        monkeypatch.setattr(sys, "stdin", Input(content))

    pipe(b"old words " * 300)
    start(run, "-")
    pipe(gzip.compress(b"new words " * 300)[:-12])
    with pytest.raises(UserError, match=r"stdin\.bytes\.gz: is truncated"):
        start(run, "-", overwrite=True)
    assert sorted(path.name for path in run.glob("stdin*")) == ["stdin.bytes"]
    resume(run)
    pipe(b'{"text": "new words, and more of them"}\n' * 50)
    start(run, "-", overwrite=True)
    assert sorted(path.name for path in run.glob("stdin*")) == ["stdin.bytes.jsonl"]
    (run / "stdin.bytes.jsonl").unlink()
    with pytest.raises(UserError, match=r"was trained on standard input, but its copy of that, .*stdin.bytes, is gone"):
        resume(run)


def test_excluded_files_are_told(corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (corpus / ".git").mkdir()
    (corpus / ".git/HEAD").write_text("ref")
    start(tmp_path / "run", corpus, settings=data(exclude=["[0-4].txt", "*.nothing"]))
    told = capsys.readouterr().err
    assert f"data: 3 files in {corpus}; left out: .git, 5 x [0-4].txt\n" in told
    assert "'*.nothing' of data.exclude leaves out no file or folder by itself" in told
    with pytest.raises(UserError, match=r"data.exclude is .* but the run was made with"):
        resume(tmp_path / "run", **{"data.exclude": []})


def test_an_older_run_is_read_as_it_was(corpus: Path, tmp_path: Path) -> None:
    """Its settings name no format: then .ndjson was a document, and nothing was left out."""
    run = tmp_path / "run"
    (corpus / "lines.ndjson").write_bytes(b'{"text": "words"}\n' * 30)
    (corpus / ".DS_Store").write_bytes(b"litter " * 30)
    start(run, corpus, settings=data(format="earlier"))
    start(tmp_path / "whole", corpus, settings=data(format="earlier"), stop_after=0)
    config = run / "config.toml"
    lines = [
        line for line in config.read_text().splitlines() if not line.startswith(("format", "exclude", "on_change"))
    ]
    config.write_text("\n".join(lines))
    (run / "corpus.jsonl").unlink()
    main(["--out", str(run), "--resume", "--device=cpu"])
    assert weights(run) == weights(tmp_path / "whole")
    assert len(find([str(corpus)], SkipLog("error"))) == 9


def test_paths_that_are_no_utf_8(corpus: Path, tmp_path: Path) -> None:
    folder = os.fsencode(tmp_path) + b"/caf\xe9"
    os.rename(corpus, folder)
    os.rename(folder + b"/0.txt", folder + b"/\xff.txt")
    words = ["--preset", "nano", "--train.steps", "2", "--train.sample_bytes", "0", "--train.batch_size", "2"]
    for more in ([folder, "--stop-after", "1", *words], ["--resume"]):
        command = [sys.executable, "-m", "bytemtp.train", "--out", tmp_path / "run", "--device", "cpu", *more]
        result = subprocess.run(command, capture_output=True, cwd=Path(__file__).parents[2])
        assert result.returncode == 0, result.stderr
    assert (b'paths = [\n    "%s",\n]' % folder) in (tmp_path / "run/config.toml").read_bytes()


def test_a_corpus_in_the_run_that_it_would_replace(corpus: Path, tmp_path: Path) -> None:
    """Its own copy of standard input, say: it would be deleted before it is read."""
    run = tmp_path / "run"
    start(run, corpus)
    (run / "stdin.bytes").write_bytes(b"words " * 300)
    for paths, settings in (
        ([run / "stdin.bytes"], SETTINGS),
        ([corpus], data(valid_paths=[str(run / "stdin.bytes")])),
    ):
        with pytest.raises(
            UserError, match=r"stdin\.bytes lies in --out .*, which is to be written; copy it elsewhere"
        ):
            start(run, *paths, settings=settings, overwrite=True)
    load_model(run)


def test_what_is_named_to_validate_on_is_not_excluded(corpus: Path, tmp_path: Path) -> None:
    (corpus / "valid.txt").write_bytes(b"held out, " * 50)
    start(
        tmp_path / "run",
        corpus,
        settings=data(valid_paths=[str(corpus / "valid.txt")], exclude=["valid.txt", "3.txt"], valid_fraction=0.0),
    )
    assert (tmp_path / "run/corpus.jsonl").read_text().count("\n") == 8


def test_what_is_left_out_is_what_is_said(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A pattern is compared with whole paths; it was with those as typed before the run, and then with whole ones."""
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    start(tmp_path / "run", "../corpus", settings=data(exclude=("../corpus/3.txt",)))
    assert "'../corpus/3.txt' of data.exclude leaves out no file" in capsys.readouterr().err
    assert "3.txt" in (tmp_path / "run/corpus.jsonl").read_text()
    start(tmp_path / "other", "../corpus", settings=data(exclude=(str(corpus / "3.txt"),)))
    assert "leaves out no file" not in capsys.readouterr().err
    assert "3.txt" not in (tmp_path / "other/corpus.jsonl").read_text()


def test_with_other_files_validations_are_compared_anew(corpus: Path, tmp_path: Path) -> None:
    """What is held out is another text then, whose bits may never come below those of the old one."""
    held_out = tmp_path / "held-out.txt"
    held_out.write_bytes(b"some words of file 1, " * 40)
    plan = changed(data(valid_paths=(str(held_out),)), **{"train.valid_every": 1, "train.lr": 1e-2})
    start(tmp_path / "run", corpus, settings=plan)
    rewrite(held_out, bytes(range(256)) * 8)
    resume(tmp_path / "run", **{"data.on_change": "warn"})
    folder = best(tmp_path / "run")
    assert folder is not None and folder.name > "step-00000003"


def test_with_other_training_files_the_best_stays_the_best(corpus: Path, tmp_path: Path) -> None:
    """What is held out is the same: its bits are still those to beat."""
    held_out = tmp_path / "held-out.txt"
    held_out.write_bytes(b"some words of file 1, " * 40)
    plan = changed(data(valid_paths=(str(held_out),)), **{"train.valid_every": 1})
    start(tmp_path / "run", corpus, settings=plan)
    state = latest(tmp_path / "run") / "state.json"  # type: ignore[operator]
    state.write_text(json.dumps(json.loads(state.read_text()) | {"best_bpb": 0.25}))
    new(corpus)
    resume(tmp_path / "run", **{"data.on_change": "warn"})
    found = load_state(latest(tmp_path / "run"))  # type: ignore[arg-type]
    assert (found.step, found.best_step, found.best_bpb) == (6, 3, 0.25)

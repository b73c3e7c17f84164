"""`python -m bytemtp.index`: which documents of which files are taken, and what is said about the others."""

import json
import re
import shutil
from importlib import import_module
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bytemtp.common.errors import UserError
from bytemtp.decoding.corpus_index import PADDING, RUN_INDEX, CorpusIndex, write_index
from bytemtp.index import index_run, main
from bytemtp.testing import corpora
from bytemtp.train import main as train_command

TEXTS = {"a.txt": b"first file", "b.txt": b"second file", "c.txt": b"third"}


def texts(folder: Path) -> list[str]:
    for name, text in TEXTS.items():
        (folder / name).write_bytes(text)
    return [str(folder / name) for name in TEXTS]


def documents_in(path: Path) -> list[bytes]:
    """Of an index."""
    index = CorpusIndex(path)
    text = path.read_bytes()[index._text : -PADDING][::-1]
    return text.removesuffix(index._separator).split(index._separator)


@given(corpus=corpora())
def test_the_documents_of_a_corpus_on_disk(tmp_path_factory, corpus):
    folder = tmp_path_factory.mktemp("corpus")
    main([str(corpus.write(folder / "files")), "--out", str(folder / "index")])
    write_index(folder / "expected", [document for document in corpus.documents if document])
    assert (folder / "index").read_bytes() == (folder / "expected").read_bytes()


def test_what_it_says(tmp_path, capsys):
    main([*texts(tmp_path), "--out", str(tmp_path / "index")])
    out, err = capsys.readouterr()
    assert documents_in(tmp_path / "index") == list(TEXTS.values())
    size = (tmp_path / "index").stat().st_size
    said = rf"written: .*index \(26 bytes of 3 documents in {size} bytes, \d+\.\d s\)\n"
    assert re.fullmatch("sorting 26 bytes\n" + said, err)
    assert out == ""


@given(limit=st.integers(1, 30))
def test_the_limit_cuts_at_its_byte_and_says_what_is_left_out(tmp_path_factory, limit):
    folder = tmp_path_factory.mktemp("limited")
    said: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("bytemtp.index.log", said.append)
        main([*texts(folder), "--out", str(folder / "index"), "--bytes", str(limit)])
    a, b, c = TEXTS.values()
    expected = [a[:limit], b[: max(0, limit - 10)], c[: max(0, limit - 21)]]
    assert documents_in(folder / "index") == [document for document in expected if document]
    first = next((number for number, end in enumerate((10, 21, 26)) if limit < end), None)
    left_out = [f"the rest of {folder / list(TEXTS)[first]}"] if first is not None else []
    more = ["", " and 1 more file", " and 2 more files"][2 - first] if first is not None else ""
    warnings = [f"warning: {limit:,} bytes are taken, the limit; left out: {name}{more}" for name in left_out]
    assert said[:-2] == warnings  # before it sorts, and says what is written


def test_litter_and_what_is_excluded_are_left_out(tmp_path, capsys):
    texts(tmp_path)
    (tmp_path / ".git").mkdir()
    (tmp_path / ".git/HEAD").write_bytes(b"ref")
    main([str(tmp_path), "--exclude", "b.*", "--out", str(tmp_path / "index")])
    assert documents_in(tmp_path / "index") == [b"first file", b"third"]
    assert "left out: .git, b.*" in capsys.readouterr().err


def test_an_older_index_among_the_files_is_not_indexed(tmp_path):
    folder = tmp_path / "g [1]*?"
    folder.mkdir()
    texts(folder)
    for _ in range(2):
        main([str(folder), "--out", str(folder / "my [1].index")])
        assert documents_in(folder / "my [1].index") == list(TEXTS.values())


def test_the_target_of_a_link_is_replaced_while_another_program_reads_it(tmp_path):
    """Overwritten in place it was cut under the reader, whose next look into the mapped file ended the process."""
    target, link = tmp_path / "target", tmp_path / "link"
    link.symlink_to(target)
    target.touch()
    main([*texts(tmp_path), "--out", str(link)])
    reader = CorpusIndex(target)
    main([*texts(tmp_path)[:1], "--out", str(link)])
    assert link.is_symlink() and documents_in(link) == [TEXTS["a.txt"]]
    assert reader.continuation(b"third", 9)[0] == 5


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--out", "x"], "no PATH given"),
        (["none", "--out", "x"], "none: no such file"),
        (["empty", "--out", "x"], "empty: is empty"),
        ([".", "--out", "x", "--bytes", "0"], "bytes is 0; it must be from 1 to"),
        ([".", "--out", "none/x"], "cannot write none/x"),
        ([".", "--out", "."], "cannot write .: Is a directory"),
        (["."], "--out PATH"),
    ],
)
def test_mistakes_are_one_line(tmp_path, monkeypatch, arguments, said):
    monkeypatch.chdir(tmp_path)
    Path("empty").touch()
    with pytest.raises(UserError) as raised:
        main(arguments)
    assert said in str(raised.value) and "\n" not in str(raised.value)
    assert not Path("x").exists()


# ---- the index of a run


TINY = {"preset": "nano", "train.steps": 2, "train.sample-bytes": 0, "model.layers": 1, "train.compile": "false"}


def trained(corpus: Path, run: Path, *options: str) -> Path:
    train_command([str(corpus), "--out", str(run), *(f"--{name}={value}" for name, value in TINY.items()), *options])
    return run


@pytest.fixture(scope="module")
def indexed_run(tmp_path_factory) -> Path:
    """Trained with --index on lines of JSON, a part of which is held out."""
    folder = tmp_path_factory.mktemp("indexed")
    lines = [json.dumps({"body": f"document {number} " + "abc " * 40}) for number in range(60)]
    (folder / "files.jsonl").write_text("\n".join(lines))
    options = ["--data.text-field", "body", "--data.valid-fraction", "0.3", "--index"]
    return trained(folder / "files.jsonl", folder / "run", *options)


def test_training_makes_an_index_of_what_it_reads_and_not_of_what_it_holds_out(indexed_run):
    numbers = [int(document.split()[1]) for document in documents_in(indexed_run / RUN_INDEX)]
    assert numbers == sorted(set(numbers)) and 20 < len(numbers) < 60


def copied_from(run: Path, *options: str) -> tuple[bytes, list[CorpusIndex]]:
    """What `bytemtp.generate` writes, and the indices that it looks into."""
    seen: list[CorpusIndex] = []
    with pytest.MonkeyPatch.context() as patch:
        command = import_module("bytemtp.generate.__main__")
        patch.setattr(command, "write", lambda data, _: written.extend(data))
        patch.setattr(command, "CorpusIndex", lambda path: seen.append(CorpusIndex(path)) or seen[-1])
        written = bytearray()
        command.main([str(run), "--prompt", "document", "--max-bytes", "30", *options])
    return bytes(written), seen


def test_generating_finds_it_unless_another_one_or_none_is_named(indexed_run, tmp_path):
    plain, none = copied_from(indexed_run, "--mode", "ar")
    assert not none
    newest = next((indexed_run / "checkpoints").glob("step-*"))
    for run in (indexed_run, newest):
        text, found = copied_from(run, "--mode", "copy")
        assert text == plain and [index.documents for index in found] == [len(documents_in(indexed_run / RUN_INDEX))]
    write_index(tmp_path / "other", [b"document 1 abc"])
    text, named = copied_from(indexed_run, "--mode", "copy", "--index", str(tmp_path / "other"))
    assert text == plain and [index.documents for index in named] == [1]
    assert copied_from(indexed_run, "--mode", "copy", "--index", "none") == (plain, [])


def test_a_new_run_takes_the_place_of_one_with_an_index(indexed_run, tmp_path):
    shutil.copytree(indexed_run, tmp_path / "run")
    (tmp_path / "a.txt").write_bytes(b"other text " * 200)
    trained(tmp_path / "a.txt", tmp_path / "run", "--overwrite")
    assert not (tmp_path / "run" / RUN_INDEX).exists()


def test_an_index_of_a_run_says_which_damaged_files_it_lacks(tmp_path, capsys):
    folder = tmp_path / "files"
    folder.mkdir()
    (folder / "a.txt").write_bytes(b"sound text " * 200)
    (folder / "b.gz").write_bytes(b"no gzip")
    run = trained(folder, tmp_path / "run", "--data.on-corrupt", "skip", "--data.valid-fraction", "0")
    capsys.readouterr()
    index_run(run)
    assert f"left out: {folder / 'b.gz'}: is damaged" in capsys.readouterr().err

"""`python -m bytemtp.index`: which documents of which files are taken, and what is said about the others."""

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bytemtp.common.errors import UserError
from bytemtp.decoding.corpus_index import PADDING, CorpusIndex, write_index
from bytemtp.index import main
from bytemtp.testing import corpora

TEXTS = {"a.txt": b"first file", "b.txt": b"second file", "c.txt": b"third"}


def texts(folder: Path) -> list[str]:
    for name, text in TEXTS.items():
        (folder / name).write_bytes(text)
    return [str(folder / name) for name in TEXTS]


def documents_in(path: Path) -> list[bytes]:
    """Of an index."""
    index = CorpusIndex(path)
    text = path.read_bytes()[index._text : -len(PADDING)][::-1]
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
    assert re.fullmatch(rf"written: .*index \(26 bytes of 3 documents in {size} bytes, \d+\.\d s\)\n", out)
    assert err == "sorting 26 bytes\n"


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
    warnings = [f"warning: {limit:,} bytes are taken, the limit (--bytes); left out: {name}{more}" for name in left_out]
    assert said[:-1] == warnings


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

"""The index: order of places, longest match, ends of documents, files that are none."""

from collections.abc import Iterator
from itertools import takewhile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bytemtp.common.errors import UserError
from bytemtp.decoding.copies import Copies
from bytemtp.decoding.corpus_index import (
    HEADER,
    MAX_MATCH,
    PADDING,
    VOTERS,
    CorpusIndex,
    sorted_places,
    write_index,
)
from bytemtp.testing import byte_documents

PIECES = st.lists(st.sampled_from([b"def ", b"return x\n", b"ab", b"aaaaaaaaaaaa", b"\0", b"\xff\0"]), max_size=8)
DOCUMENTS = st.lists(st.one_of(byte_documents(100), PIECES.map(b"".join)), min_size=1, max_size=6)
ALL_BYTES = bytes(range(256))


def index_of(folder: Path, *documents: bytes) -> CorpusIndex:
    write_index(folder / "index", documents)
    return CorpusIndex(folder / "index")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("index")


@given(text=st.one_of(st.binary(min_size=1, max_size=80), PIECES.map(b"".join).filter(bool)))
def test_places_are_sorted_by_what_follows(text):
    padded = text + PADDING * b"e"
    assert sorted_places(padded).tolist() == sorted(range(len(text)), key=lambda i: (padded[i : i + MAX_MATCH], i))


def slow_matches(documents: list[bytes], text: bytes) -> Iterator[tuple[int, bytes]]:
    """At each place of each document: how many bytes before it are the text's last, and all that follows."""
    for document in documents:
        for place in range(len(document) + 1):
            both = zip(document[:place][::-1][:MAX_MATCH], text[::-1], strict=False)
            yield len(list(takewhile(lambda pair: pair[0] == pair[1], both))), document[place:]


def separated(documents: list[bytes]) -> list[bytes]:
    """At the rarest byte as well, which no text holds: of several the smallest."""
    everything = b"".join(documents)
    separator = min(range(256), key=everything.count).to_bytes()
    return [piece for document in documents for piece in document.split(separator)]


@given(documents=DOCUMENTS, data=st.data(), count=st.integers(0, 12), all_bytes=st.booleans())
def test_the_longest_match_of_all(folder, documents, data, count, all_bytes):
    documents += [ALL_BYTES] * all_bytes
    pieces = separated(documents)
    text = data.draw(st.one_of(st.sampled_from(documents), st.binary(max_size=40)))
    text = text[: data.draw(st.integers(0, len(text)))]
    length, following = index_of(folder, *documents).continuation(text, count)
    matches = list(slow_matches(pieces, text))
    assert length == max(matched for matched, _ in matches)
    votes = [after[:count] for matched, after in matches if matched == length]
    assert following in votes if length else not following
    first = [vote[:1] for vote in votes]
    assert len(votes) > VOTERS or not length or first.count(following[:1]) == max(map(first.count, first))


def test_the_majority_decides_where_places_match_alike(folder):
    index = index_of(folder, b"the cat", b"the dog", b"the dot", b"one cow")
    assert index.continuation(b"to the ", 2) == (4, b"do")


def test_nothing_crosses_the_end_of_a_document(folder):
    index = index_of(folder, b"alpha beta", b"gamma")
    assert index.continuation(b"alpha be", 9) == (8, b"ta")
    assert index.continuation(b"alpha beta", 9) == (10, b"")
    assert index.continuation(b"betag", 9) == (1, b"amma")
    assert index.continuation(b"beta\0g", 9) == (1, b"amma")  # the separator here
    assert index.continuation(b"", 9) == index.continuation(b"xyz", 9) == (0, b"")


def test_no_match_reaches_past_the_end_of_the_corpus(folder):
    """Behind which the file used to have bytes that a document may end with."""
    assert index_of(folder, b"\0\0\0", b"").continuation(b"\0\0\0", 9) == (3, b"")


def test_a_longer_match_counts_and_the_text_on_a_tie(folder):
    copies = Copies(index_of(folder, b"one two three"))
    copies.extend(b"two 2,two")
    assert copies.continuation(4) == (3, b" 2,t")
    copies.extend(b" 3, two")
    assert copies.continuation(4) == (4, b" thr")


@given(documents=DOCUMENTS)
def test_the_file_depends_on_the_documents_alone(folder, documents):
    paths = [folder / "a", folder / "b"]
    for path in paths:
        write_index(path, documents)
    assert paths[0].read_bytes() == paths[1].read_bytes()
    assert CorpusIndex(paths[0]).documents == len(documents)


@given(cut=st.integers(0, HEADER.size + 200), data=st.data())
def test_a_file_that_is_no_index_is_an_error_and_nothing_else_fails(folder, cut, data):
    """Cut short, or begun otherwise: an error.  Changed behind the header: other drafts at worst."""
    write_index(folder / "whole", [b"some text, some more text"])
    whole = (folder / "whole").read_bytes()
    (folder / "cut").write_bytes(whole[:cut])
    if cut < len(whole):
        with pytest.raises(UserError, match=r"cut.*bytemtp\.index|cannot read the index"):
            CorpusIndex(folder / "cut")
    changed = bytearray(whole)
    for place in data.draw(st.lists(st.integers(0, len(whole) - 1), max_size=20)):
        changed[place] = data.draw(st.integers(0, 255))
    (folder / "changed").write_bytes(changed)
    try:
        index = CorpusIndex(folder / "changed")
    except UserError:
        assert changed[: HEADER.size] != whole[: HEADER.size]
    else:
        length, following = index.continuation(b"some text", 5)
        assert length <= 9 and len(following) <= 5


@pytest.mark.parametrize("content", [b"", b"def f():\n", b"bytemtp index 2\n" + bytes(200)])
def test_foreign_files(tmp_path, content):
    (tmp_path / "file").write_bytes(content)
    for path in (tmp_path / "file", tmp_path / "none", tmp_path):
        with pytest.raises(UserError, match="index"):
            CorpusIndex(path)


def test_writing_is_all_or_nothing(tmp_path, monkeypatch):
    index_of(tmp_path, b"the first")
    before = (tmp_path / "index").read_bytes()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("bytemtp.common.files.sync", full)
    with pytest.raises(UserError, match=r"cannot write .*index: No space left"):
        write_index(tmp_path / "index", [b"the second"])
    assert [path.name for path in tmp_path.iterdir()] == ["index"]
    assert (tmp_path / "index").read_bytes() == before

"""The strategies for users: what they draw is what they say, and they reach every format."""

import tempfile
from pathlib import Path
from typing import TypeVar

from hypothesis import Phase, given, settings
from hypothesis.strategies import SearchStrategy

from bytemtp.data.compression import Format, format_of
from bytemtp.testing import Corpus, CorpusFile, byte_documents, compressed_files, corpora

Drawn = TypeVar("Drawn")


@given(byte_documents(max_size=20))
def test_documents_are_bytes_of_bounded_size(document: bytes) -> None:
    assert isinstance(document, bytes)
    assert len(document) <= 20


def drawn(strategy: SearchStrategy[Drawn], count: int = 150) -> list[Drawn]:
    """Examples of a strategy: the same ones every time, but others whenever any source changes, whose numbers and texts
    hypothesis takes some of.  So they must be many enough to miss nothing by chance."""
    examples = []

    @settings(derandomize=True, database=None, max_examples=count, phases=[Phase.generate])
    @given(strategy)
    def collect(example: Drawn) -> None:
        examples.append(example)

    collect()
    return examples


def test_documents_reach_the_whole_byte_range() -> None:
    documents = drawn(byte_documents(), count=3000)
    assert b"" in documents
    assert {byte for document in documents for byte in document} == set(range(256))


def test_compressed_files_reach_every_format() -> None:
    kinds = {format_of(file.name).compression for file in drawn(compressed_files())}
    assert kinds == {None, "zst", "gz", "xz", "bz2"}


def test_corpora_reach_every_format_and_hold_something() -> None:
    examples = drawn(corpora(), count=500)
    formats = {format_of(file.name) for corpus in examples for file in corpus.files}
    assert formats == {Format(kind, box) for kind in (None, "zst", "gz", "xz", "bz2") for box in (None, "tar", "jsonl")}
    assert all(any(corpus.documents) for corpus in examples)


@given(corpora())
def test_corpus_on_disk(corpus: Corpus) -> None:
    """Names are different and come in the order of a sorted walk; `write` puts exactly these files down."""
    names = [Path(file.name).parts for file in corpus.files]
    assert names == sorted(set(names))
    with tempfile.TemporaryDirectory() as name:
        folder = corpus.write(Path(name))
        written = {
            path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()
        }
    assert written == {file.name: file.data for file in corpus.files}


def test_documents_of_a_corpus_come_in_file_order() -> None:
    corpus = Corpus((CorpusFile("a", b"", (b"1", b"2")), CorpusFile("b", b"", ()), CorpusFile("c", b"", (b"3",))))
    assert corpus.documents == [b"1", b"2", b"3"]

"""The data stream against its slow, obvious twin: one list of ids, cut by slicing."""

import dataclasses
import gc
import gzip
import hashlib
import io
import json
import math
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bytemtp.common.errors import UserError
from bytemtp.common.vocab import EOT
from bytemtp.data import documents as documents_module
from bytemtp.data import rows as rows_module
from bytemtp.data.rows import EmptySplit, IdStream, Position
from bytemtp.data.sources import SkipLog, Source, find
from bytemtp.data.stream import Batch, Cursor, Stream, choose_sweeps, stream
from bytemtp.testing import Corpus, corpora

stream_module = sys.modules[Stream.__module__]
"""`bytemtp.stream` itself is the function."""

Row = tuple[list[int], list[int]]
"""ids and document ids"""

SHAPES = st.fixed_dictionaries({"seq_len": st.sampled_from([1, 5, 16, 40]), "n_future": st.integers(1, 9)})
SWEEPS = st.integers(1, 4)
WEIGHTS = st.sampled_from([[], [1.0], [2.0], [2.75]])
BATCHES = st.fixed_dictionaries({"batch_size": st.integers(1, 4), "shuffle": st.booleans()})


@contextmanager
def in_the_small(corpus: Corpus, sections: int = documents_module.SECTION_BYTES) -> Iterator[Path]:
    """A corpus on disk, and blocks of so few rows (and perhaps so short sections) that it crosses many borders."""
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(stream_module, "SHUFFLED_GROUP_BYTES", 64)
        patch.setattr(stream_module, "ORDERED_GROUP_BYTES", 64)
        patch.setattr(rows_module, "MAX_GROUP_ENDS", 3)
        patch.setattr(documents_module, "SECTION_BYTES", sections)
        yield corpus.write(Path(folder))


def rows_of(batches: Iterable[Batch]) -> list[Row]:
    return [
        row for batch in batches for row in zip(batch.ids.tolist(), batch.document_ids.tolist(), strict=True)
    ]  # fmt: skip


def twin(documents: list[bytes], seq_len: int, n_future: int) -> list[Row]:
    """The rows by slicing."""
    ids = [value for document in documents for value in [*document, EOT]]
    rows = []
    for start in range(0, len(ids) - 1, seq_len):
        row = ids[start : start + seq_len + n_future]
        padding = seq_len + n_future - len(row)
        document_ids = [row[: place + 1].count(EOT) for place in range(len(row))]
        rows.append((row + [EOT] * padding, document_ids + [-1] * padding))
    return rows


@given(corpus=corpora(), shape=SHAPES, batch_size=st.integers(1, 4), prefetch=st.integers(0, 2))
def test_stream_gives_the_documents(corpus: Corpus, shape: dict[str, int], batch_size: int, prefetch: int) -> None:
    """Any documents in any container and compression come out as the same bytes, in the same rows as the twin's."""
    with (
        in_the_small(corpus) as folder,
        stream(folder, batch_size=batch_size, shuffle=False, prefetch=prefetch, **shape) as batches,
    ):
        assert rows_of(batches) == twin(corpus.documents, **shape)


@given(corpus=corpora(max_files=1), shape=SHAPES, seed=st.integers(0, 99))
def test_shuffle_permutes_the_rows(corpus: Corpus, shape: dict[str, int], seed: int) -> None:
    with in_the_small(corpus) as folder:
        shuffled = rows_of(stream(folder, seed=seed, prefetch=0, **shape))
        assert shuffled == rows_of(stream(folder, seed=seed, prefetch=0, **shape))
    if len(corpus.files) == 1:
        assert Counter(map(str, shuffled)) == Counter(map(str, twin(corpus.documents, **shape)))


def test_shuffle_depends_on_seed_and_epoch(tmp_path: Path) -> None:
    for number in range(20):
        (tmp_path / f"{number:02}").write_bytes(bytes([number]) * 40)

    def order(seed: int, epochs: int) -> list[list[int]]:
        batches = list(stream(tmp_path, seq_len=10, batch_size=1, n_future=1, seed=seed, epochs=epochs))
        return [batch.octets[0, :10].tolist() for batch in batches]

    assert order(0, 1) == order(0, 1) != order(1, 1)
    both = order(0, 2)
    assert both[:82] == order(0, 1)[:82]
    assert both[82:] != both[:82]


@given(
    corpus=corpora(),
    shape=SHAPES,
    options=BATCHES,
    epochs=st.integers(1, 3),
    sweeps=SWEEPS,
    weights=WEIGHTS,
    split=st.sampled_from(["all", "train"]),
    place=st.integers(0, 10**6),
)
def test_resume_at_any_cut(
    corpus: Corpus,
    shape: dict[str, int],
    options: dict[str, Any],
    epochs: int,
    sweeps: int,
    weights: list[float],
    split: str,
    place: int,
) -> None:
    """From the cursor of any batch, through JSON, come exactly the batches that followed it."""
    options |= shape | {"epochs": epochs, "split": split, "valid_fraction": 0.3, "prefetch": 0, "weights": weights}
    options["sweeps"] = sweeps if options["shuffle"] else 1
    with in_the_small(corpus, sections=16) as folder:
        try:
            whole = list(stream(folder, **options))
        except EmptySplit:
            return
        place %= len(whole)
        cursor = Cursor(**json.loads(json.dumps(dataclasses.asdict(whole[place].cursor))))
        rest = list(stream(folder, cursor=cursor, **options))
    assert rows_of(rest) == rows_of(whole[place + 1 :])
    assert [batch.cursor for batch in rest] == [batch.cursor for batch in whole[place + 1 :]]


@given(corpus=corpora(), shape=SHAPES, options=BATCHES, world_size=st.integers(1, 4), place=st.integers(0, 10**6))
def test_ranks_partition_the_rows(
    corpus: Corpus, shape: dict[str, int], options: dict[str, Any], world_size: int, place: int
) -> None:
    """Row i of the order that all share goes to rank i % world_size, also when all resume from one rank's cursor."""
    options |= shape | {"prefetch": 0}
    with in_the_small(corpus) as folder:
        everything = rows_of(stream(folder, **options))
        ranks = [list(stream(folder, rank=rank, world_size=world_size, **options)) for rank in range(world_size)]
        assert [rows_of(batches) for batches in ranks] == [everything[rank::world_size] for rank in range(world_size)]
        full = [batch for batch in ranks[-1] if len(batch.octets) == options["batch_size"]]
        if not full:
            return
        place %= len(full)
        for rank, batches in enumerate(ranks):
            rest = stream(folder, rank=rank, world_size=world_size, cursor=full[place].cursor, **options)
            assert rows_of(rest) == rows_of(batches[place + 1 :])


@given(
    weights=st.tuples(st.sampled_from([0.25, 0.5, 1.0, 2.75]), st.sampled_from([1.0, 3.25])),
    sweeps=SWEEPS,
    seed=st.integers(0, 99),
)
def test_weights_say_how_often_a_path_is_read(weights: tuple[float, float], sweeps: int, seed: int) -> None:
    """In an epoch each document comes weight times, rounded up or down; in four epochs, 4 x weight times exactly."""
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder, name) for name in "ab"]
        for path in paths:
            path.mkdir()
            for number in range(20):
                (path / str(number)).write_bytes(f"{path.name}{number:02}".encode())

        def read(epochs: int) -> Counter[str]:
            options: dict[str, Any] = {"n_future": 1, "seed": seed, "epochs": epochs, "sweeps": sweeps}
            batches = stream(paths, 4, 100, weights=weights, prefetch=0, **options)
            return Counter(bytes(row[:3]).decode() for batch in batches for row in batch.octets.tolist())

        names = [f"{path.name}{number:02}" for path in paths for number in range(20)]
        once, often = read(1), read(4)
        for name in names:
            weight = weights["ab".index(name[0])]
            assert once[name] in (math.floor(weight), math.ceil(weight))
            assert often[name] == 4 * weight
        assert often.total() == sum(often[name] for name in names)


def test_weights_that_change_nothing(tmp_path: Path) -> None:
    (tmp_path / "text").write_bytes(bytes(range(200)))
    first, same, twice = (next(stream(tmp_path, 16, 2, weights=weights)) for weights in ([], [1.0], [2.0]))
    assert first.cursor == same.cursor
    assert first.cursor.corpus != twice.cursor.corpus


@given(corpus=corpora(), shape=SHAPES, fraction=st.sampled_from([0.1, 0.5, 0.9]))
def test_split_shares_out_the_sections(corpus: Corpus, shape: dict[str, int], fraction: float) -> None:
    """Train and valid are those pieces that a fixed hash says: the split of a corpus must never change."""
    with in_the_small(corpus, sections=16) as folder:
        for split in ("train", "valid"):
            pieces = [
                piece
                for file in corpus.files
                for number, document in zip(numbers_in(folder / file.name), file.documents, strict=True)
                for piece in pieces_of(document, in_split(file.name, number, fraction, split))
            ]
            rows = twin(pieces, **shape)
            options = {"split": split, "valid_fraction": fraction, "shuffle": False, "prefetch": 0, **shape}
            if any(pieces):
                assert rows_of(stream(folder, **options)) == rows
            else:
                with pytest.raises(EmptySplit, match=f"split '{split}' with valid_fraction {fraction}"):
                    list(stream(folder, **options))


@given(corpus=corpora(), seed=st.integers(0, 9), sweeps=SWEEPS, fraction=st.sampled_from([0.0, 0.5]))
def test_sweeps_share_out_the_sections(corpus: Corpus, seed: int, sweeps: int, fraction: float) -> None:
    """An epoch holds each section of the split once, in the pieces and with the shares that a fixed hash says."""
    with in_the_small(corpus, sections=16) as folder:
        expected = Counter(
            piece
            for share in range(sweeps)
            for file in corpus.files
            for number, document in zip(numbers_in(folder / file.name), file.documents, strict=True)
            for piece in pieces_of(document, in_share(file.name, number, seed, sweeps, share, fraction))
        )
        log = SkipLog("error")
        options: dict[str, Any] = {"split": "train" if fraction else "all", "valid_fraction": fraction}
        ids = IdStream(find([folder], log), log, seed=seed, sweeps=sweeps, **options)
        try:
            octets = [item.octets for item in ids.read(Position(), row_width=1)][:-1]
        except UserError:
            assert not any(expected)
            return
    pieces = [b""]
    for some in octets:
        pieces[-1] += some
        pieces += [b""] * (not some)
    assert Counter(pieces[:-1]) == expected


def in_share(name: str, number: int, seed: int, sweeps: int, share: int, fraction: float) -> Callable[[int], bool]:
    def keep(section: int) -> bool:
        text = f"{seed} {number} {section} {name}".encode()
        digest = hashlib.blake2b(text, digest_size=8, person=b"share").hexdigest()
        in_this = sweeps == 1 or int(digest, 16) % sweeps == share
        return in_this and in_split(name, number, fraction, "train")(section)

    return keep


@pytest.mark.parametrize(
    ("container", "files", "groups", "least_distance"),
    [("jsonl", 1, 8, 0.8), ("tar", 4, 8, 0.8), ("tar", 1, 60, 0.4), ("jsonl", 4, 60, 0.4)],
)
def test_documents_of_large_files_are_mixed(
    container: str, files: int, groups: int, least_distance: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where a row is in the corpus says little about when it comes, and neighbours in time come from anywhere.

    The larger corpus has more row groups than there may be sweeps, so each group sees a part of it only.
    """
    monkeypatch.setattr(stream_module, "SHUFFLED_GROUP_BYTES", 1024)
    count = groups * 1024 // 32
    write_numbered(tmp_path, container, [range(i * count // files, (i + 1) * count // files) for i in range(files)])
    sweeps = choose_sweeps(find([tmp_path], SkipLog("error")))
    assert 8 <= sweeps <= 16
    order, distance = mixing(tmp_path, sweeps)
    assert abs(order) < 0.2
    assert distance > least_distance
    unswept = mixing(tmp_path, 1)
    assert unswept[1] < 0.3  # the measure sees what sweeps are for
    assert files > 1 or unswept[0] > 0.9


def write_numbered(folder: Path, container: str, files: list[range]) -> None:
    """Documents of 31 bytes that are their numbers."""
    for i, numbers in enumerate(files):
        documents = [b"%031d" % number for number in numbers]
        if container == "jsonl":
            text = "".join(json.dumps({"text": document.decode()}) + "\n" for document in documents)
            (folder / f"{i}.jsonl").write_text(text)
            continue
        with tarfile.open(folder / f"{i}.tar", "w") as archive:
            for number, document in zip(numbers, documents, strict=True):
                member = tarfile.TarInfo(str(number))
                member.size = len(document)
                archive.addfile(member, io.BytesIO(document))


def mixing(folder: Path, sweeps: int) -> tuple[float, float]:
    """Rank correlation of a row's places in corpus and stream, and how far apart neighbours lie: 1 as in chance."""
    batches = stream(folder, seq_len=32, batch_size=64, n_future=1, seed=0, sweeps=sweeps, prefetch=0)
    numbers = np.array([int(bytes(row[:31])) for batch in batches for row in batch.octets.tolist()])
    assert sorted(numbers) == list(range(len(numbers)))
    order = float(np.corrcoef(numbers, np.arange(len(numbers)))[0, 1])
    return order, float(np.abs(np.diff(numbers)).mean() / (len(numbers) / 3))


def test_every_epoch_has_its_own_order_of_shares(tmp_path: Path) -> None:
    write_numbered(tmp_path, "jsonl", [range(200)])
    batches = stream(tmp_path, seq_len=32, batch_size=1, n_future=1, epochs=2, sweeps=4, prefetch=0)
    numbers = [int(bytes(batch.octets[0, :31].tolist())) for batch in batches]
    assert sorted(numbers[:200]) == sorted(numbers[200:]) == list(range(200))
    assert numbers[:200] != numbers[200:]


def test_sweeps_follow_the_sizes_of_files(tmp_path: Path) -> None:
    def sweeps(**sizes: int) -> int:
        for name, size in sizes.items():
            with (tmp_path / name.replace("_", ".")).open("wb") as file:
                file.truncate(size)
        found = find([tmp_path / name.replace("_", ".") for name in sizes], SkipLog("error"))
        return choose_sweeps(found)

    mega = 1 << 20
    assert sweeps(a_txt=8 * mega) == 1
    assert sweeps(a_txt=8 * mega + 1) == 2
    assert sweeps(a_txt=80 * mega) == 10
    assert sweeps(a_zst=20 * mega) == 10
    assert sweeps(a_txt=8000 * mega) == 16
    assert sweeps(**{f"{i}_txt": mega // 2 for i in range(100)}) == 1
    assert sweeps(**{f"{i}_txt": mega for i in range(100)}) == 2
    assert choose_sweeps([Source("-", 0)]) == 1


def test_an_epoch_is_counted(tmp_path: Path) -> None:
    """Without taking anything from the batches; with sweeps, the ends of their pieces count, too."""
    (tmp_path / "a.txt").write_bytes(bytes(2 << 20))
    (tmp_path / "b.txt").write_bytes(b"abc")
    with stream(tmp_path, seq_len=512, n_future=1, epochs=None) as batches:
        assert batches.count_epoch() == (2 << 20) + 1 + 3 + 1
        assert next(batches).cursor.row == 8
    with stream(tmp_path, seq_len=512, n_future=1, batch_size=1, sweeps=3) as batches:
        count = batches.count_epoch()
        assert count > (2 << 20) + 5
        assert sum(int(batch.lengths.sum()) - 1 for batch in batches) == count - 1


def numbers_in(path: Path) -> list[int]:
    """The numbers of a file's documents: blank lines of .jsonl count."""
    documents = documents_module.open_documents(Source(str(path), 0), SkipLog("error"))
    with closing(documents):
        return [documents.index for _ in iter(documents.advance, False)]


def pieces_of(document: bytes, keep: Callable[[int], bool]) -> list[bytes]:
    sections = [document[start : start + 16] for start in range(0, len(document), 16)] or [b""]
    pieces: list[bytes] = []
    open_piece = False
    for place, section in enumerate(sections):
        if keep(place) and open_piece:
            pieces[-1] += section
        elif keep(place):
            pieces.append(section)
        open_piece = keep(place)
    return pieces


def in_split(name: str, number: int, fraction: float, split: str) -> Callable[[int], bool]:
    def keep(section: int) -> bool:
        digest = hashlib.blake2b(f"{number} {section} {name}".encode(), digest_size=8).hexdigest()
        return (int(digest, 16) / 2**64 < fraction) == (split == "valid")

    return keep


@given(corpus=corpora(), shape=SHAPES, options=BATCHES, data=st.data())
def test_damaged_files_are_left_out_the_same_way_every_time(
    corpus: Corpus, shape: dict[str, int], options: dict[str, Any], data: st.DataObject
) -> None:
    """on_corrupt="skip": what comes before the damage stays, in an order that can be resumed; the damage is counted."""
    victim = data.draw(st.sampled_from(corpus.files))
    broken = data.draw(st.one_of(cut(victim.data), flip(victim.data)) if victim.data else st.just(b""))
    options |= shape | {"prefetch": 0}
    with in_the_small(corpus) as folder:
        (folder / victim.name).write_bytes(broken)
        try:
            strict = rows_of(stream(folder, **options))
        except UserError:
            strict = None
        batches = stream(folder, on_corrupt="skip", **options)
        if not any(any(document) for file in corpus.files if file is not victim for document in file.documents):
            return  # perhaps no byte is left
        whole = list(batches)
        assert (strict is None) == bool(batches.skipped) == (batches.skipped_count > 0)
        assert strict in (None, rows_of(whole))
        place = data.draw(st.integers(0, len(whole) - 1))
        rest = stream(folder, on_corrupt="skip", cursor=whole[place].cursor, **options)
        assert rows_of(rest) == rows_of(whole[place + 1 :])


def cut(data: bytes) -> st.SearchStrategy[bytes]:
    return st.integers(0, len(data)).map(lambda end: data[:end])


def flip(data: bytes) -> st.SearchStrategy[bytes]:
    return st.integers(0, len(data) - 1).map(lambda at: data[:at] + bytes([data[at] ^ 255]) + data[at + 1 :])


def test_document_before_the_damage_is_kept(tmp_path: Path) -> None:
    (tmp_path / "a.gz").write_bytes(gzip.compress(b"whole") + b"no gzip")
    (tmp_path / "b.txt").write_bytes(b"next")
    with pytest.raises(UserError, match=r"a\.gz: is damaged: "):
        list(stream(tmp_path))
    (tmp_path / "a.gz").write_bytes(gzip.compress(b"whole")[:-1])
    batches = stream(tmp_path, seq_len=20, n_future=1, shuffle=False, on_corrupt="skip")
    assert rows_of(batches) == twin([b"whole", b"next"], 20, 1)
    assert batches.skipped == [(str(tmp_path / "a.gz"), "is truncated: it ends inside its compressed data")]
    assert batches.skipped_count == 1


def test_endless_stream_packs_across_epochs(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"abcdefg")
    (tmp_path / "b.txt").write_bytes(b"xy")
    with stream(tmp_path, seq_len=4, batch_size=3, n_future=2, epochs=None, shuffle=False) as batches:
        rows = rows_of(next(batches) for _ in range(5))
    expected = twin([b"abcdefg", b"xy"] * 10, 4, 2)
    assert rows == expected[:15]


def test_small_corpus_is_seen_whole_before_it_is_seen_again(tmp_path: Path) -> None:
    """A block used to run on over many epochs of a corpus smaller than itself, and shuffled them into each other."""
    (tmp_path / "a.txt").write_bytes(bytes(range(200)))
    with stream(tmp_path, seq_len=10, batch_size=1, n_future=1, epochs=None) as batches:
        for epoch in range(3):
            # 201 ids are 20.1 rows, so the row that crosses the end belongs to the first epoch.
            rows = [next(batches) for _ in range(21 if epoch == 0 else 20)]
            assert len({tuple(row.octets[0, :10].tolist()) for row in rows}) == len(rows)


def test_batch_moves_and_builds_ids_where_it_is(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"abc")
    [batch] = stream(tmp_path, seq_len=8, n_future=2, batch_size=2)
    assert batch.octets.dtype == torch.uint8
    assert (batch.ids.dtype, batch.document_ids.dtype) == (torch.int64, torch.int32)
    assert batch.ids.tolist() == [[97, 98, 99] + [EOT] * 7]
    assert batch.document_ids.tolist() == [[0, 0, 0, 1] + [-1] * 6]
    moved = batch.to("meta")
    assert moved.ids.device.type == moved.document_ids.device.type == "meta"
    assert moved.cursor == batch.cursor


def test_data_left_compressed(tmp_path: Path) -> None:
    """decompress=False trains on the file as it lies, tar headers and all."""
    path = tmp_path / "a.tar.zst"
    path.write_bytes(b"not really zst")
    assert rows_of(stream(path, seq_len=8, n_future=2, decompress=False)) == twin([b"not really zst"], 8, 2)


BAD_ARGUMENTS = {
    "seq_len is 0; it must be 1 or more": {"seq_len": 0},
    "batch_size is 0; it must be 1 or more": {"batch_size": 0},
    "n_future is 33; it must be 32 or less": {"n_future": 33},
    "epochs is 0; it must be 1 or more": {"epochs": 0},
    "rank is 2; it must be 1 or less": {"rank": 2, "world_size": 2},
    "world_size is 0": {"world_size": 0},
    "prefetch is -1": {"prefetch": -1},
    "seed is -1; it must be 0 or more": {"seed": -1},
    "seq_len is 64.0, of type float; it must be a whole number": {"seq_len": 64.0},
    r"exclude is '\*.log', of type str; it must be a list of texts": {"exclude": "*.log"},
    "sweeps is 0; it must be 1 or more": {"sweeps": 0},
    "weights has 2 numbers for 1 paths; give one for each": {"weights": [1.0, 2.0]},
    "weights has 0; each must be above 0": {"weights": [0.0]},
    "weights is 2, of type int; it must be a list of numbers": {"weights": 2},
    r"weights\[0\] is '1', of type str; it must be a number": {"weights": ["1"]},
    "shuffle is 'no', of type str; it must be True or False": {"shuffle": "no"},
    "text_field is None, of type NoneType; it must be a text": {"text_field": None},
    "weights has 0.5 at most; it must have a number from 1 on": {"weights": [0.5]},
    "sweeps is 2; it must be 1 or less": {"sweeps": 2, "shuffle": False},
    "valid_fraction is 1.5; it must be from 0 to 1": {"valid_fraction": 1.5},
    "split is 'test'; choose from all, train, valid": {"split": "test"},
    "format is 'csv'; choose from auto, raw, jsonl, tar, zip, earlier": {"format": "csv"},
    "on_corrupt is 'ignore'; choose from error, skip": {"on_corrupt": "ignore"},
    "pin_memory needs a CUDA device": {"pin_memory": True},
}


@pytest.mark.parametrize("message", BAD_ARGUMENTS)
def test_bad_argument(message: str, tmp_path: Path) -> None:
    if "pin_memory" in message and torch.cuda.is_available():
        pytest.skip("this machine has a CUDA device")
    (tmp_path / "a.txt").write_bytes(b"abc")
    with pytest.raises(UserError, match=message):
        stream(tmp_path, **BAD_ARGUMENTS[message])


def test_endless_corpus_shorter_than_a_row(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"abc")
    with pytest.raises(UserError, match=r"has 4 ids, less than one row of 520 \(seq_len \+ n_future\)"):
        next(stream(tmp_path, epochs=None))
    assert len(list(stream(tmp_path, epochs=2))) == 1


def test_corpus_without_a_byte(tmp_path: Path) -> None:
    (tmp_path / "a.txt").touch()
    (tmp_path / "b.txt").touch()
    for epochs in (1, None):
        with pytest.raises(UserError, match="the corpus holds no byte; give it files that do"):
            next(stream(tmp_path, epochs=epochs))


def test_a_corpus_of_nothing_but_damage_says_what_is_wrong(tmp_path: Path) -> None:
    """Also where there is a split, which is then not to blame."""
    (tmp_path / "a.jsonl").write_text('{"content": "a"}\n' * 30)
    reason = r"30 damaged inputs are left out, the first .*a.jsonl: line 1 has no field 'text', but 'content'"
    for split in ("all", "train"):
        with pytest.raises(UserError, match=reason):
            next(stream(tmp_path, split=split, valid_fraction=0.1, on_corrupt="skip", epochs=None))


def test_cursor_of_other_files(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"abc" * 100)
    cursor = next(stream(tmp_path)).cursor
    with pytest.raises(UserError, match="the cursor belongs to other files or settings"):
        list(stream(tmp_path, seq_len=511, cursor=cursor))
    (tmp_path / "b.txt").write_bytes(b"abc")
    with pytest.raises(UserError, match="the cursor belongs to other files or settings"):
        list(stream(tmp_path, cursor=cursor))


def test_cursor_into_a_file_that_has_become_shorter(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(bytes(3 << 20))
    batches = list(stream(path, shuffle=False))
    path.write_bytes(bytes(1 << 20))
    with pytest.raises(UserError, match=r"a.txt: holds less than when the cursor was made"):
        list(stream(path, shuffle=False, cursor=batches[-2].cursor))


def test_corpus_may_move(tmp_path: Path) -> None:
    for folder in ("here", "there"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "a.txt").write_bytes(b"abc" * 1000)
    batches = list(stream(tmp_path / "here", batch_size=1))
    rest = stream(tmp_path / "there", batch_size=1, cursor=batches[1].cursor)
    assert rows_of(rest) == rows_of(batches[2:])


def test_standard_input(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "input").write_bytes(b"abc")
    with (tmp_path / "input").open() as file:
        monkeypatch.setattr(sys, "stdin", file)
        assert rows_of(stream("-", seq_len=8, n_future=2)) == twin([b"abc"], 8, 2)
        with pytest.raises(UserError, match=r"- \(standard input\) can be read only once"):
            stream("-").count_epoch()
    with pytest.raises(UserError, match=r"- \(standard input\) can be read only once; save it to a file"):
        stream("-", epochs=2)


def test_thread_ends_with_its_stream(tmp_path: Path) -> None:
    """By close, by the end of a with block, at the end of the data, and when the stream is just forgotten."""
    (tmp_path / "a.txt").write_bytes(bytes(1 << 22))

    def endless() -> Stream:
        batches = stream(tmp_path, epochs=None)
        next(batches)
        return batches

    closed = endless()
    closed.close()
    assert list(closed) == []
    with endless():
        pass
    list(stream(tmp_path, batch_size=1000))
    endless()
    gc.collect()
    deadline = time.monotonic() + 5
    while reading() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert reading() == []


def reading() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "bytemtp-stream"]


@pytest.mark.parametrize("prefetch", [0, 2])
def test_error_reaches_the_consumer(tmp_path: Path, prefetch: int) -> None:
    """Whole groups before the damage are delivered, then its error is raised, then the stream is over."""
    (tmp_path / "a.txt").write_bytes(bytes(4 << 20))
    (tmp_path / "b.gz").write_bytes(b"no gzip at all")
    batches = stream(tmp_path, batch_size=64, shuffle=False, prefetch=prefetch)
    received = []
    with pytest.raises(UserError, match=r"b\.gz: is damaged"):
        received.extend(batches)
    assert list(batches) == []


def test_program_ends_although_a_stream_is_open(tmp_path: Path) -> None:
    """The reading thread must not keep a finished program alive, not even while it waits for standard input."""
    (tmp_path / "a.txt").write_bytes(bytes(1 << 20))
    program = "import sys, bytemtp as s; held = s.stream(sys.argv[1], epochs={}); {}"
    for path, rest in (("-", "1"), (str(tmp_path), "next(held)")):
        command = [sys.executable, "-c", program.format(1 if path == "-" else None, rest), path]
        with subprocess.Popen(command, stdin=subprocess.PIPE, cwd=Path(__file__).parents[1]) as process:
            assert process.wait(timeout=60) == 0


@pytest.mark.slow
def test_memory_is_flat(tmp_path: Path) -> None:
    """A file 30 times as long takes no more memory, and millions of empty documents not much more."""
    from bytemtp.bench.data import peak_memory, write_corpus

    small, large = (write_corpus(tmp_path / f"{size}.zst", size) for size in (10, 300))
    assert peak_memory(large) < peak_memory(small) + (8 << 20)
    (tmp_path / "empty.jsonl").write_bytes(b'{"text": ""}\n' * 3_000_000 + b'{"text": "a"}\n')
    assert peak_memory(tmp_path / "empty.jsonl") < peak_memory(small) + (100 << 20)


@settings(max_examples=20)
@given(corpus=corpora(), options=BATCHES)
def test_prefetch_changes_nothing(corpus: Corpus, options: dict[str, Any]) -> None:
    with in_the_small(corpus) as folder:
        plain = list(stream(folder, seq_len=7, n_future=3, prefetch=0, **options))
        ahead = list(stream(folder, seq_len=7, n_future=3, prefetch=3, **options))
    assert rows_of(plain) == rows_of(ahead)
    assert [batch.cursor for batch in plain] == [batch.cursor for batch in ahead]

"""Which files a path stands for, and each kind of bad path."""

import io
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from hypothesis import given

from bytemtp.common.errors import UserError
from bytemtp.data.sources import Damaged, RawFile, SkipLog, Source, find, spool_standard_input
from bytemtp.data.stream import stream
from bytemtp.testing import Corpus, corpora


def keys(*paths: str | Path, on_corrupt: str = "error") -> list[str]:
    return [source.key for source in find(list(paths), SkipLog(on_corrupt))]  # type: ignore[arg-type]


def read(source: Source) -> bytes:
    file = source.open()
    data = b""
    while part := file.read(7):
        data += part
    file.close()
    return data


@given(corpora())
def test_folder_gives_every_file_in_order(corpus: Corpus) -> None:
    with tempfile.TemporaryDirectory() as name:
        found = find([corpus.write(Path(name))], SkipLog("error"))
        assert [(source.key, read(source)) for source in found] == [(file.name, file.data) for file in corpus.files]


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    for name in ("b.txt", "a/x.txt", "a/.hidden", "a/deep/y.md", "[a].txt"):
        path = tmp_path / "tree" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    return tmp_path / "tree"


def test_keys_do_not_depend_on_where_the_corpus_lies(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A key names a file to the split and to the cursor, so it is relative to the path that was given."""
    everything = ["[a].txt", "a/.hidden", "a/deep/y.md", "a/x.txt", "b.txt"]
    assert keys(tree) == keys(f"{tree}/") == everything
    assert keys(tree / "b.txt") == ["b.txt"]
    assert keys(tree / "a", tree / "b.txt") == [".hidden", "deep/y.md", "x.txt", "b.txt"]
    monkeypatch.chdir(tree)
    assert keys(".") == everything
    assert keys("b.txt") == ["b.txt"]


def test_globs(tree: Path) -> None:
    assert keys(tree / "*.txt") == ["[a].txt", "b.txt"]
    assert keys(tree / "a*") == ["a/.hidden", "a/deep/y.md", "a/x.txt"], "a folder stands for its files"
    assert keys(tree / "**/*.md") == ["a/deep/y.md"]
    assert keys(tree / "**") == ["[a].txt", "a/deep/y.md", "a/x.txt", "b.txt"]
    assert keys(tree / "[a].txt") == ["[a].txt"], "a file that exists is no pattern"


def test_a_pattern_of_any_depth_reads_the_folders_that_it_matches(tree: Path) -> None:
    assert keys(tree / "**" / "a") == ["a/.hidden", "a/deep/y.md", "a/x.txt"]
    assert keys(tree / "**" / "[ad]*") == ["a/.hidden", "a/deep/y.md", "a/x.txt"], "each file once"
    assert keys(f"{tree}/**/deep/") == ["a/deep/y.md"], "a slash at the end asks for folders"
    assert keys(f"{tree}/**/") == ["[a].txt", "a/.hidden", "a/deep/y.md", "a/x.txt", "b.txt"]
    assert keys(tree / "**" / "*") == ["[a].txt", "a/deep/y.md", "a/x.txt", "b.txt"]
    assert keys(tree / "**" / "a" / "**" / "*.md") == keys(tree / "**" / "**" / "*.md") == ["a/deep/y.md"]


@pytest.mark.parametrize("pattern", ["**", "**/*", "**/*.*"])
def test_a_loop_is_left_out_alone(tree: Path, pattern: str) -> None:
    (tree / "a" / "loop").symlink_to(tree)
    skip_log = SkipLog("skip")
    assert {source.key for source in find([tree / pattern], skip_log)} >= {"a/deep/y.md", "a/x.txt", "b.txt"}
    assert len({source.key for source in find([tree / pattern], SkipLog("skip"))}) == 4
    assert skip_log.listed == [(str(tree / "a" / "loop"), "is a symbolic link to a folder that holds it: a loop")]


class Unreachable(MemoryFileSystem):
    """Raises what is no OSError, as the libraries behind file systems do."""

    protocol = "unreachable"

    def exists(self, path: str, **_: Any) -> bool:
        raise ValueError("no route\nto the host")


def test_errors_of_file_systems_are_damages(tmp_path: Path) -> None:
    fsspec.register_implementation("unreachable", Unreachable, clobber=True)
    (tmp_path / "good.txt").write_bytes(b"good")
    with pytest.raises(Damaged, match=r"unreachable://a: cannot be read: no route$"):
        keys("unreachable://a")
    assert keys("unreachable://a", tmp_path, on_corrupt="skip") == ["good.txt"]


def test_symbolic_links_are_followed(tree: Path) -> None:
    (tree / "link.txt").symlink_to(tree / "b.txt")
    (tree / "other").symlink_to(tree / "a")
    assert keys(tree)[-4:] == ["link.txt", "other/.hidden", "other/deep/y.md", "other/x.txt"]


def test_special_files_are_left_alone(tree: Path) -> None:
    os.mkfifo(tree / "pipe")
    assert "pipe" not in keys(tree)
    with pytest.raises(UserError, match="pipe: is neither a file nor a folder; pipe it into standard input"):
        keys(tree / "pipe")


def make_missing(folder: Path) -> Path:
    return folder / "missing.txt"


def make_empty_folder(folder: Path) -> Path:
    (folder / "empty").mkdir()
    return folder / "empty"


def make_empty_file(folder: Path) -> Path:
    (folder / "empty.txt").touch()
    return folder / "empty.txt"


def make_pattern(folder: Path) -> Path:
    return folder / "*.nothing"


def make_folder_loop(folder: Path) -> Path:
    (folder / "loop").mkdir()
    (folder / "loop" / "again").symlink_to(folder / "loop")
    return folder / "loop"


def make_glob_loop(folder: Path) -> Path:
    return make_folder_loop(folder) / "**" / "*"


def make_self_loop(folder: Path) -> Path:
    (folder / "self").symlink_to(folder / "self")
    return folder / "self"


def make_dangling(folder: Path) -> Path:
    (folder / "dangling").symlink_to(folder / "nothing")
    return folder / "dangling"


BAD_PATHS = {
    make_missing: "missing.txt: no such file or folder$",
    make_empty_folder: "empty: holds no file$",
    make_empty_file: "empty.txt: is empty$",
    make_pattern: r"\*.nothing: no such file or folder, and nothing matches it as a pattern$",
    make_folder_loop: "again: is a symbolic link to a folder that holds it: a loop$",
    make_glob_loop: "again: is a symbolic link to a folder that holds it: a loop$",
    make_self_loop: "self: is a symbolic link that leads back to itself: a loop$",
    make_dangling: "dangling: is a symbolic link to nothing$",
}


@pytest.mark.parametrize("make", BAD_PATHS, ids=lambda make: make.__name__)
def test_bad_path_is_an_error_or_skipped_with_a_count(make, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    bad = make(tmp_path)
    good = tmp_path / "good.txt"
    good.write_bytes(b"good")
    with pytest.raises(Damaged, match=BAD_PATHS[make]) as raised:
        keys(bad)
    assert "\n" not in str(raised.value)
    skip_log = SkipLog("skip")
    assert [source.key for source in find([bad, good], skip_log)][-1] == "good.txt"
    # A folder whose only entry is a loop is also a folder without a file.
    assert skip_log.count == len(skip_log.listed) >= 1


def test_nothing_left_to_read(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no file to read in .*missing.txt'; name one that exists"):
        keys(tmp_path / "missing.txt", on_corrupt="skip")
    with pytest.raises(UserError, match="no file to read in no paths"):
        keys()


def test_many_damages_are_counted_but_not_all_listed() -> None:
    skip_log = SkipLog("skip")
    for number in range(1500):
        skip_log.report(Damaged(str(number), "is bad"))
    assert (skip_log.count, len(skip_log.listed)) == (1500, 1000)


def test_unreadable_file(tmp_path: Path) -> None:
    path = tmp_path / "secret.txt"
    path.write_bytes(b"secret")
    path.chmod(0)
    user = os.geteuid()
    if user == 0:
        os.seteuid(65534)  # root may read everything
    try:
        with pytest.raises(Damaged, match=r"secret.txt: cannot be read: Permission denied"):
            Source(str(path), 0).open()
    finally:
        if user == 0:
            os.seteuid(0)


def test_file_that_shrinks_while_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(bytes(100))
    file = Source(str(path), 0).open()
    assert len(file.read(60)) == 60
    os.truncate(path, 50)
    with pytest.raises(Damaged, match=r"a.txt: shrank while it was read: 60 of 100 bytes were there"):
        file.read(40)
    file.close()


def test_file_that_grows_is_read_to_its_old_end(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"old")
    file = Source(str(path), 0).open()
    path.write_bytes(b"old and new")
    assert (file.read(100), file.read(100)) == (b"old", b"")
    file.close()


class Streamed(io.BytesIO):
    """As fsspec gives a file of a web server that has no parts of files to give."""

    def seek(self, *_: Any) -> int:
        raise ValueError("Cannot seek streaming HTTP file")


def test_a_file_that_cannot_be_sought_in_is_read_forward() -> None:
    file = RawFile("https://host/a", Streamed(b"0123456789"), size=10)
    assert (file.skip(4), file.read(2), file.skip(9), file.read(1)) == (4, b"45", 4, b"")


def test_urls(tmp_path: Path) -> None:
    memory = fsspec.filesystem("memory")
    memory.pipe({"/corpus/b.txt": b"bb", "/corpus/a/a.txt": b"a", "/corpus/empty": b""})
    try:
        assert keys("memory://corpus") == ["a/a.txt", "b.txt", "empty"]
        assert keys("memory://corpus/*.txt") == ["b.txt"]
        assert keys("memory://corpus/b.txt") == ["b.txt"]
        assert [read(source) for source in find(["memory://corpus"], SkipLog("error"))] == [b"a", b"bb", b""]
        [batch] = stream("memory://corpus/b.txt", seq_len=2, n_future=1)
        assert batch.ids.tolist() == [[98, 98, 256]]
        with pytest.raises(Damaged, match=r"memory://corpus/c.txt: no such file or folder"):
            keys("memory://corpus/c.txt")
        with pytest.raises(Damaged, match="memory://corpus/empty: is empty"):
            keys("memory://corpus/empty")
    finally:
        memory.rm("/corpus", recursive=True)
    with pytest.raises(UserError, match=r"nonsense://corpus: .*nonsense"):
        keys("nonsense://corpus")
    with pytest.raises(UserError, match=r"URLs in a chain \(::\) are not read; name the inner one"):
        keys("simplecache::memory://corpus")


def test_standard_input_stands_once() -> None:
    with pytest.raises(UserError, match="- stands twice among the paths"):
        keys("-", "-")


def test_spool_standard_input(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "input").write_bytes(bytes(range(256)) * 9)
    with (tmp_path / "input").open() as file:
        monkeypatch.setattr(sys, "stdin", file)
        spool_standard_input(tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == bytes(range(256)) * 9

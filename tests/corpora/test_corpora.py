"""The corpora that come with the project."""

import hashlib
import json
import os
from pathlib import Path

import pytest

import corpora
from bytemtp.common.errors import UserError
from bytemtp.data.stream import stream
from corpora import python_library, tiny_text
from corpora import sources as source_files

TINY = Path(corpora.__file__).parent / "tiny.txt"


@pytest.fixture
def sources(tmp_path: Path) -> Path:
    """40 modules, a copy of one of them, a test, a large table, a non-UTF-8 file, an empty file and no source."""
    folder = tmp_path / "lib"
    files = {f"module_{number:02}.py": b"x = %d\n" % number for number in range(40)}
    files |= {
        "package/copy.py": b"x = 7\n",
        "package/latin.py": b"# caf\xe9\n",
        "package/__init__.py": b"",
        "test/test_module.py": b"assert False\n",
        "site-packages/other.py": b"other\n",
        "table.py": b"#" * (source_files.MAX_FILE_BYTES + 1),
        "data.txt": b"not a source\n",
    }
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return folder


def test_sources(sources: Path, tmp_path: Path) -> None:
    manifest = source_files.build(tmp_path / "out", [sources])
    assert json.loads((tmp_path / "out" / "manifest.json").read_text()) == manifest
    names = [file["name"] for file in manifest["files"]]
    assert names == [f"lib/module_{number:02}.py" for number in range(40)] + ["lib/package/latin.py"]
    for split in ("train", "heldout"):
        listed = [file for file in manifest["files"] if file["split"] == split]
        contents = [(sources.parent / file["name"]).read_bytes() for file in listed]
        assert [file["sha256"] for file in listed] == [hashlib.sha256(data).hexdigest() for data in contents]
        archive = tmp_path / "out" / f"{split}.tar.zst"
        entry = manifest["archives"][archive.name]
        assert entry["sha256"] == hashlib.sha256(archive.read_bytes()).hexdigest()
        assert (entry["files"], entry["bytes"]) == (len(contents), sum(map(len, contents)))
        assert read(archive) == contents


def read(path: Path) -> list[bytes]:
    [batch] = stream(path, seq_len=4096, n_future=1, shuffle=False)
    ids = batch.ids[0, : batch.lengths[0]].tolist()
    documents = "".join(map(chr, ids)).split(chr(256))
    return [document.encode("latin-1") for document in documents[:-1]]


def test_sources_give_the_same_bytes_again(sources: Path, tmp_path: Path) -> None:
    """Dates, owners and the order of a folder's entries must not show."""
    first = source_files.build(tmp_path / "1", [sources])
    for path in sources.rglob("*.py"):
        path.touch()
    (sources / "module_00.py").rename(sources / "aside")
    (sources / "aside").rename(sources / "module_00.py")
    assert source_files.build(tmp_path / "2", [sources]) == first
    for name in ("train.tar.zst", "heldout.tar.zst", "manifest.json"):
        assert (tmp_path / "1" / name).read_bytes() == (tmp_path / "2" / name).read_bytes()


def test_python_library_command(sources: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    python_library.main(["--out", str(tmp_path / "out"), "--add", str(sources)])
    line = capsys.readouterr().out
    assert line.startswith("Python 3.")
    assert " MB: train.tar.zst " in line
    assert line.count("\n") == 1
    with pytest.raises(UserError, match="missing is no folder; name one with source files"):
        python_library.main(["--out", str(tmp_path / "out"), "--add", str(tmp_path / "missing")])


def test_sources_command(sources: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source_files.main([str(sources), "--suffix", ".txt", ".md", "--out", str(tmp_path / "out")])
    assert "train.tar.zst" in capsys.readouterr().out
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert [file["name"] for file in manifest["files"]] == ["lib/data.txt"]


def test_two_files_of_one_name(tmp_path: Path) -> None:
    """Of folders with the same last name; one of them used to be lost."""
    for parent in "ab":
        (tmp_path / parent / "src").mkdir(parents=True)
        (tmp_path / parent / "src" / "m.py").write_text(f"{parent} = 1")
        (tmp_path / parent / "src" / "dangling.py").symlink_to("nothing")
    with pytest.raises(UserError, match=r"b/src/m.py is a second src/m.py; give the folders different names"):
        source_files.build(tmp_path / "out", [tmp_path / "a/src", tmp_path / "b/src"])


@pytest.mark.parametrize("name", ["package", "package/latin.py"])
def test_what_cannot_be_read_is_told(sources: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """A corpus without it would be another one."""
    monkeypatch.chdir(sources.parent)  # which another user may read, unlike what it lies in
    sources.parent.chmod(0o755)
    user = os.geteuid()
    (sources / name).chmod(0)
    if user == 0:
        os.seteuid(65534)  # root may read everything
    try:
        with pytest.raises(UserError, match=f"cannot read .*{name}: Permission denied"):
            source_files.build(Path("out"), [Path(sources.name)])
    finally:
        if user == 0:
            os.seteuid(0)
        (sources / name).chmod(0o700)


def test_no_sources(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no \.py file below .*; name folders that have some"):
        source_files.build(tmp_path / "out", [tmp_path])


def test_tiny_text_is_what_its_generator_writes() -> None:
    assert TINY.read_text(encoding="utf-8") == tiny_text.text()
    assert 20_000 <= TINY.stat().st_size <= 40_000


def test_tiny_text_is_for_training() -> None:
    """It is a single document, and a small validation share must not take it away whole."""
    with stream(TINY, split="train", valid_fraction=0.1) as batches:
        assert sum(batch.lengths.sum() for batch in batches) > 20_000

"""A corpus of the source files in some folders, such as an unpacked source package.

    python -m corpora.sources linux/kernel linux/mm --suffix .c .h --out DIR

DIR/train.tar.zst, DIR/heldout.tar.zst (5 %, by hash of the content) and DIR/manifest.json with name, size, SHA-256 and
split of each file.  Each file is there once, however often it lies on disk; those above 1 MiB (generated tables) are
left out, and so are tests and installed packages.  Bytes are taken as they are.  The same sources give the same files.
"""

import argparse
import hashlib
import io
import json
import os
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, NoReturn

import zstandard

from bytemtp.common.cli import run_main
from bytemtp.common.errors import UserError
from bytemtp.common.files import writing

HELD_OUT_SHARE = 0.05
MAX_FILE_BYTES = 1 << 20
COMPRESSION_LEVEL = 12
LEFT_OUT = {"test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__"}

Split = Literal["train", "heldout"]


@dataclass(frozen=True)
class SourceFile:
    """One line of the manifest."""

    name: str
    bytes: int
    sha256: str
    split: Split


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m corpora.sources",
        description="Write a corpus of the source files in some folders.",
        epilog="example: python -m corpora.sources linux/kernel linux/mm --suffix .c .h --out corpus",
    )
    parser.add_argument("folders", type=Path, nargs="+", metavar="FOLDER", help="with all folders below it")
    parser.add_argument("--suffix", nargs="+", default=[".py"], help="how the names of wanted files end (.py)")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder to write to")
    options = parser.parse_args(arguments)
    print(summary(build(options.out, options.folders, options.suffix)))


def build(
    out: Path, folders: Sequence[Path], suffixes: Sequence[str] = (".py",), about: dict[str, str] | None = None
) -> dict[str, Any]:
    """Write the corpus of all `folders` and return its manifest, which begins with `about`.

    UserError if no file's name ends in one of the suffixes.
    """
    contents = _collect(folders, tuple(suffixes))
    if not contents:
        raise UserError(
            f"no {' or '.join(suffixes)} file below {', '.join(map(str, folders))}; name folders that have some"
        )
    files = [_describe(name, data) for name, data in contents.items()]
    manifest: dict[str, Any] = {**(about or {}), "archives": {}}
    with writing(out):
        out.mkdir(parents=True, exist_ok=True)
        (out / "manifest.json").unlink(missing_ok=True)  # it stands for a whole corpus
        for split in ("train", "heldout"):
            chosen = [file for file in files if file.split == split]
            archive = _archive([(file.name, contents[file.name]) for file in chosen])
            (out / f"{split}.tar.zst").write_bytes(archive)
            manifest["archives"][f"{split}.tar.zst"] = {
                "files": len(chosen),
                "bytes": sum(file.bytes for file in chosen),
                "compressed_bytes": len(archive),
                "sha256": hashlib.sha256(archive).hexdigest(),
            }
        manifest["files"] = [asdict(file) for file in files]
        (out / "manifest.json").write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")
    return manifest


def summary(manifest: dict[str, Any]) -> str:
    archives = manifest["archives"]
    total = sum(archive["bytes"] for archive in archives.values())
    parts = [f"{name} {archive['files']} files, {archive['bytes'] / 1e6:.1f} MB" for name, archive in archives.items()]
    return f"{total / 1e6:.1f} MB: {'; '.join(parts)}"


def _collect(folders: Sequence[Path], suffixes: tuple[str, ...]) -> dict[str, bytes]:
    """Name to content, sorted by name, each content once.

    UserError if two files have one name, or what cannot be read.
    """
    found: dict[str, bytes] = {}
    seen: set[bytes] = set()
    for folder in folders:
        for path in _source_files(folder, suffixes):
            try:
                data = path.read_bytes()
            except OSError as error:
                _tell(error)
            digest = hashlib.sha256(data).digest()
            if data and len(data) <= MAX_FILE_BYTES and digest not in seen:
                seen.add(digest)
                name = f"{folder.resolve().name}/{path.relative_to(folder).as_posix()}"
                if name in found:
                    raise UserError(f"{path} is a second {name}; give the folders different names")
                found[name] = data
    return dict(sorted(found.items()))


def _source_files(folder: Path, suffixes: tuple[str, ...]) -> Iterator[Path]:
    if not folder.is_dir():
        raise UserError(f"{folder} is no folder; name one with source files")
    for parent, children, names in os.walk(folder, onerror=_tell):
        children[:] = sorted(set(children) - LEFT_OUT)
        paths = (Path(parent, name) for name in sorted(names) if name.endswith(suffixes))
        try:
            yield from filter(Path.is_file, paths)
        except OSError as error:
            _tell(error)


def _tell(error: OSError) -> NoReturn:
    """A corpus without what cannot be read would be another one."""
    raise UserError(f"cannot read {error.filename}: {error.strerror}") from error


def _describe(name: str, data: bytes) -> SourceFile:
    digest = hashlib.sha256(data).hexdigest()
    held_out = int(digest[:8], 16) < HELD_OUT_SHARE * 2**32
    return SourceFile(name, len(data), digest, "heldout" if held_out else "train")


def _archive(members: Sequence[tuple[str, bytes]]) -> bytes:
    """A .tar.zst whose bytes depend on names and contents only: no dates, no owners."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for name, data in members:
            header = tarfile.TarInfo(name)
            header.size = len(data)
            archive.addfile(header, io.BytesIO(data))
    return zstandard.ZstdCompressor(level=COMPRESSION_LEVEL, write_checksum=True).compress(buffer.getvalue())


if __name__ == "__main__":
    run_main(main)

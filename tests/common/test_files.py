"""Files that are written whole or not at all."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from bytemtp.common.files import cache_folder, check_output

WRITERS = """
import os, sys
from pathlib import Path
from bytemtp.common.files import write_file
children = []
for letter in "abcd":
    child = os.fork()
    if not child:
        for _ in range(50):
            write_file(Path(sys.argv[1]), 1000 * letter)
        os._exit(0)
    children.append(child)
sys.exit(max(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children))
"""


def test_processes_may_write_one_file_at_a_time(tmp_path: Path) -> None:
    """As the shards of `passk` do when they are started together."""
    assert subprocess.run([sys.executable, "-c", WRITERS, tmp_path / "settings.json"]).returncode == 0
    assert (tmp_path / "settings.json").read_text() in [1000 * letter for letter in "abcd"]
    assert [path.name for path in tmp_path.iterdir()] == ["settings.json"]


def test_checking_an_output_leaves_what_lies_beside_it(tmp_path: Path) -> None:
    (tmp_path / "index.partial").write_bytes(b"of another program")
    check_output(tmp_path / "index")
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("index.partial", b"of another program")]


def test_what_cannot_be_kept_is_kept_for_the_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a folder that cannot be written, each call once had a new temporary folder, and costs were measured anew."""
    (tmp_path / "file").write_bytes(b"")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert cache_folder() == cache_folder() != tmp_path / "file/bytemtp"


def test_what_is_kept_for_the_process_goes_with_it(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    code = "from bytemtp.common.files import cache_folder; print(cache_folder())"
    environment = os.environ | {"XDG_CACHE_HOME": str(tmp_path / "file"), "TMPDIR": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
    assert done.stdout.startswith(str(tmp_path)) and not Path(done.stdout.strip()).exists()


def test_a_full_disk_behind_standard_output_is_told() -> None:
    code = "from bytemtp.common.cli import run_main; run_main(lambda: print('buffered'))"
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-c", code], stdout=full, stderr=subprocess.PIPE, text=True, env=environment
        )
    assert (done.returncode, done.stderr) == (2, "error: cannot write: No space left on device\n")

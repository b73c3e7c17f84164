"""`evaluate bpb` and `passk` by several processes: what is printed and written is what one alone would.

What the processes do is in evaluation_jobs.py.
"""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.evaluation.evaluation_jobs import MISFORTUNES, PROBLEMS

CLOCK = {"seconds", "programs_per_s"}
SIZES = (2, 3)


@pytest.fixture(scope="module")
def jobs(tmp_path_factory: pytest.TempPathFactory, trained_run: Path) -> Path:
    """The folder of all jobs, once they have ended."""
    folder = tmp_path_factory.mktemp("shared") / "jobs"
    script = Path(__file__).with_name("evaluation_jobs.py")
    line = [sys.executable, script, folder, trained_run]
    subprocess.run(line, check=True, timeout=600, env=os.environ | {"PYTHONPATH": "."})
    return folder


def printed(path: Path) -> str:
    """Without the line that says how fast it went."""
    return re.sub("(?m)^.* programs/s.*$", "", path.read_text())


def summary(path: Path) -> dict[str, Any]:
    return {name: value for name, value in json.loads(path.read_text()).items() if name not in CLOCK}


@pytest.mark.parametrize("size", [1, *SIZES])
def test_the_first_process_alone_prints(jobs: Path, size: int) -> None:
    for verb, words in (("bpb", ["bpb_per_head", "context 20"]), ("passk", ["pass@1", "report: passk/report.html"])):
        assert json.loads((jobs / f"{verb} {size}.json").read_text())["statuses"] == [0] * size
        texts = [printed(path) for path in sorted((jobs / f"{verb} {size}").glob("*.out"))]
        assert texts == [printed(jobs / f"{verb} 1" / "0.out")] + [""] * (size - 1)
        assert all(word in texts[0] for word in words)


@pytest.mark.parametrize("size", SIZES)
def test_bits_per_byte_are_those_of_one_process_to_the_last_bit(jobs: Path, size: int) -> None:
    one, several = ((jobs / f"bpb {n}" / "bpb.json").read_text() for n in (1, size))
    assert one == several
    assert json.loads(one)["bytes"] == sum(path.stat().st_size for path in (jobs / "corpus").iterdir())
    assert set(json.loads(one)["compressed_bytes"]) == {"zstd-19", "xz-9"}


@pytest.mark.parametrize("job", [*(f"passk {size}" for size in SIZES), "resumed"])
def test_samples_and_verdicts_are_those_of_one_process(jobs: Path, job: str) -> None:
    one, several = jobs / "passk 1" / "passk", jobs / job / "passk"
    for name in ("samples.jsonl", "results.jsonl", "settings.json"):
        assert (one / name).read_bytes() == (several / name).read_bytes()
    assert summary(one / "summary.json") == summary(several / "summary.json")
    assert len((one / "samples.jsonl").read_text().splitlines()) == 2 * 3 * PROBLEMS


@pytest.mark.parametrize("size", SIZES)
def test_every_process_draws_its_problems(jobs: Path, size: int) -> None:
    paths = [jobs / f"passk {size}" / "passk" / f"samples.{rank + 1}-of-{size}.jsonl" for rank in range(size)]
    tasks = [{json.loads(line)["task_id"] for line in path.read_text().splitlines()} for path in paths]
    assert tasks == [{f"task/{i}" for i in range(rank, PROBLEMS, size)} for rank in range(size)]


@pytest.mark.parametrize(
    ("job", "message"),
    [
        ("broken", "this process cannot score"),
        ("input", "2 processes cannot all read standard input; name a file"),
        ("by hand", "--shard is for processes that cannot meet, and these 2 can; leave it out"),
        ("alone", "2 processes would do the same: only bpb and passk share their work among processes; start this"),
        ("misspelt", "unknown setting '--strid' in the command line"),
        ("other samples", "passk was begun with model another, not"),
    ],
)
def test_trouble_of_one_process_ends_all_with_one_line(jobs: Path, job: str, message: str) -> None:
    assert job in MISFORTUNES
    record = json.loads((jobs / f"{job}.json").read_text())
    assert record["statuses"] == [2, 2]
    (told,) = {line for line in record["errors"].splitlines() if re.match(r"(error|\w+Error): ", line)}
    assert message in told
    assert "Traceback" not in record["errors"]
    assert [path.read_text() for path in (jobs / job).glob("*.out")] == ["", ""]

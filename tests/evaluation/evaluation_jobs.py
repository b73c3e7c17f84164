"""The jobs of test_evaluation_shared.py: as a script it imports torch once, then forks the processes of job after job.

    python tests/evaluation/evaluation_jobs.py FOLDER RUN

FOLDER/JOB/ is where a job works, FOLDER/JOB/RANK.out what a process printed, and
FOLDER/JOB.json exit statuses and what was written to standard error.
"""

import json
import os
import sys
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

from bytemtp import evaluate
from bytemtp.common.errors import UserError
from bytemtp.evaluation import bits_per_byte as bpb
from bytemtp.evaluation.code import execute, passk
from bytemtp.evaluation.code.execute import Sample, Verdict
from bytemtp.sandbox.launch import Launch, Limits
from tests.training.distributed_jobs import fork, write_corpus

PROBLEMS = 5
PASSES_OF = 64
"""Positions in a pass: many passes, and a last round without one for everybody."""
BPB = ["bpb", "RUN", "../corpus", "--device=cpu", "--json=bpb.json", "--contexts", "8", "20"]
PASSK = [
    *("passk", "RUN", "--problems=../problems.jsonl", "--out=passk", "--samples=3", "--batch=2", "--max-bytes=9"),
    *("--device=cpu", "--temperature", "0.5", "1.0"),
]
MISFORTUNES = {
    "broken": BPB,
    "input": [*BPB[:2], "-"],
    "by hand": [*PASSK, "--shard=1/2"],
    "alone": ["choice", "RUN", "--tasks=../problems.jsonl"],
    "misspelt": ["bpb", "RUN", "../corpus", "--strid=3"],
    "other samples": PASSK,
}


def write_problems(path: Path) -> None:
    def record(number: int) -> dict[str, Any]:
        prompt = f'def f(x):\n    """x plus {number}"""\n'
        return {"task_id": f"task/{number}", "prompt": prompt, "entry_point": "f", "test": "def check(f): pass\n"}

    path.write_text("".join(json.dumps(record(number)) + "\n" for number in range(PROBLEMS)))


def without_sandbox() -> None:
    """A judge that passes samples with an even number of letters."""

    def verdicts(launch: Launch, problems: object, samples: Sequence[Sample], workers: int) -> Iterator[Verdict]:
        return (Verdict(len(sample.completion) % 2 == 0, "failed: odd") for sample in samples)

    execute.verdicts = verdicts  # type: ignore[assignment]
    passk.launched = lambda *_: Launch(sys.executable, "", isolated=False, limits=Limits())  # type: ignore[assignment]
    passk.checked = lambda _, problems: list(problems)  # type: ignore[assignment]


def work(folder: Path, job: str, *, run: Path, line: list[str]) -> None:
    here = folder / job
    here.mkdir(exist_ok=True)
    os.chdir(here)
    os.dup2(os.open(f"{os.environ.get('RANK', '0')}.out", os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 1)
    if job == "broken" and os.environ["RANK"] == "1":
        bpb.score_windows = fail  # type: ignore[assignment]
    evaluate.main([str(run) if word == "RUN" else word for word in line])
    sys.stdout.flush()


def fail(*_: object) -> None:
    raise UserError("this process cannot score")


def main(folder: Path, run: Path) -> None:
    write_corpus(folder / "corpus")
    write_problems(folder / "problems.jsonl")
    without_sandbox()
    bpb.IDS_A_PASS = PASSES_OF
    for size, line in product((1, 2, 3), (BPB, PASSK)):
        fork(folder, f"{line[0]} {size}", size, partial(work, run=run, line=line))
    for job, line in MISFORTUNES.items():
        if job == "other samples":
            (folder / job / "passk").mkdir(parents=True)
            (folder / job / "passk" / "settings.json").write_text('{"model": "another"}')
        fork(folder, job, 2, partial(work, run=run, line=line))
    # One of two shares of the samples is there, and three processes draw the rest.
    (folder / "resumed" / "passk").mkdir(parents=True)
    for name in ("settings.json", "samples.2-of-2.jsonl"):
        (folder / "resumed" / "passk" / name).write_bytes((folder / "passk 2" / "passk" / name).read_bytes())
    fork(folder, "resumed", 3, partial(work, run=run, line=PASSK))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))

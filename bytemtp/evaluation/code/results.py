"""results.jsonl: a line a sample with its verdict, written as the verdicts come, in the order of the samples.

Each line has a digest of all that has decided its verdict: problem, tests and program, limits, the sandbox's code, its
Python and packages.  A run goes on where it was stopped; a verdict that other things have decided is not taken over.
"""

import hashlib
import subprocess
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from bytemtp.common.errors import UserError
from bytemtp.common.files import write_file
from bytemtp.common.jsonl import JsonLinesFile, line_of, read_lines
from bytemtp.common.runtime import log, progress
from bytemtp.evaluation.code.problems import Cases, Problem
from bytemtp.sandbox import launch as launch_module
from bytemtp.sandbox.launch import Launch
from bytemtp.sandbox.wire import pack

Judged = list[dict[str, Any]]
"""Lines of results.jsonl."""

DIGEST = "verdict_digest"
VERDICT_FIELDS = ("passed", "result", "together", DIGEST)


def digests(launch: Launch, programs: Iterable[tuple[Problem, str]]) -> list[str]:
    """Of each program, as it would be judged for its problem."""
    around = circumstances(launch)
    problems: dict[str, bytes] = {}
    found = []
    for problem, source in programs:
        if problem.task_id not in problems:
            problems[problem.task_id] = hashlib.sha256(around + task(problem)).digest()
        found.append(
            hashlib.sha256(problems[problem.task_id] + source.encode("utf-8", "surrogatepass")).hexdigest()[:16]
        )
    return found


def task(problem: Problem) -> bytes:
    """What of a problem decides."""
    tests = problem.tests
    kind = "cases" if isinstance(tests, Cases) else "tests"
    return pack([problem.fault, problem.source(problem.canonical or ""), problem.imports, kind, *vars(tests).values()])


def circumstances(launch: Launch) -> bytes:
    """What decides besides problem and program."""
    code = [*Path(launch_module.__file__).parent.glob("*.py"), Path(__file__).with_name("execute.py")]
    python = [launch.python, "-S", "-c", "import sys; print(sys.version)"]
    version = subprocess.run(python, capture_output=True, check=True).stdout
    packages = [path.name for path in Path(launch.packages).glob("*.dist-info")] if launch.packages else []
    limits = [launch.limits.seconds, launch.limits.memory_mib, launch.isolated]
    return pack([*(path.read_bytes() for path in sorted(code)), version, launch.packages, sorted(packages), *limits])


def continued(path: Path, samples: Sequence[dict[str, Any]]) -> JsonLinesFile:
    """The results that earlier runs have of these samples.  UserError if they are of others."""
    old = read_lines(put_by(path)) if path.exists() else []  # not if the user has taken the results away
    results = JsonLinesFile(path)
    results.records += old[len(results.records) :]
    same = all(
        isinstance(line, dict) and "passed" in line and is_of(line, sample)
        for sample, line in zip(samples, results.records, strict=False)
    )
    if not same or len(results.records) > len(samples):
        raise UserError(f"{path} has results of other samples; remove it or give another --out")
    return results


def put_by(path: Path) -> Path:
    """What was in results.jsonl, as long as verdicts that stay come after some that are being replaced."""
    return path.with_suffix(".old.jsonl")


def is_of(line: dict[str, Any], sample: dict[str, Any]) -> bool:
    """Whether a line of results has all that a sample has; as text, in which a nan is like another."""
    return sample.items() <= line.items() or line_of({name: line.get(name) for name in sample}) == line_of(sample)


def completed(
    results: JsonLinesFile,
    samples: Sequence[dict[str, Any]],
    decided: Sequence[str],
    judge: Callable[[list[int]], Iterator[dict[str, Any]]],
) -> tuple[Judged, int]:
    """Results of all samples, the verdicts that are there if their digests are those `decided`; and how many are new.

    judge: gives the verdicts of the samples of these numbers, as fields.  UserError if the disk does not take them.
    """
    old = results.records
    good = [line.get(DIGEST) == digest for line, digest in zip(old, decided, strict=False)]
    if stale := good.count(False):
        log(
            f"{results.path}: {stale} of {len(old)} verdicts came about by other tests, limits, code or Python, or by a"
            " version that did not note by which; they are judged anew"
        )
    good += [False] * (len(samples) - len(good))
    missing = [number for number, is_good in enumerate(good) if not is_good]
    kept = missing[0] if missing else len(samples)
    judged, fresh = old[:kept], judge(missing)
    passed = sum(bool(line["passed"]) for line in judged)
    if any(good[kept:]):
        write_file(put_by(results.path), b"".join(map(line_of, old)))
    results.keep(kept)
    with progress(len(samples), "programs", "judged", kept) as bar:
        for number in range(kept, len(samples)):
            line = old[number] if good[number] else samples[number] | next(fresh) | {DIGEST: decided[number]}
            results.append([line])
            judged.append(line)
            passed += bool(line["passed"])
            bar.update()
            bar.set_postfix_str(f"passed {passed}", refresh=False)
    put_by(results.path).unlink(missing_ok=True)
    return judged, len(missing)

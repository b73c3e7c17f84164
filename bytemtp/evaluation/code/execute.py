"""Judge programs that a model wrote, each in a sandbox, and estimate pass@k.

What a sandbox keeps out, and what it does not: `docs/sandbox.md`.  Results are written as they come, in the
order of the samples, so that a run that was killed goes on where it stopped (`results.py`).

Try:  python -m bytemtp.evaluate execute --problems HumanEval.jsonl.gz --samples samples.jsonl --out judged
"""

import json
import os
import threading
import time
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tyro

from bytemtp.common.errors import UserError
from bytemtp.common.files import read_object, write_json
from bytemtp.common.runtime import log
from bytemtp.evaluation.code.imports import checked
from bytemtp.evaluation.code.problems import Cases, Problem, judgeable, read_problems, records
from bytemtp.evaluation.code.results import VERDICT_FIELDS, Judged, completed, continued, digests
from bytemtp.sandbox.launch import Launch, Limits
from bytemtp.sandbox.prepare import prepare
from bytemtp.sandbox.worker import Outcome, Worker

DEFAULT_K = (1, 10, 100)
AHEAD = 4
"""Samples taken in advance, for each worker."""
A_DAY = 86_400
"""Longest timeout, in seconds: sockets take no endless one."""
WARNING = (
    "WARNING: --unsafe: the programs run WITHOUT ISOLATION. They can read and delete your files, use the network and"
    " outlive this command. Judge only programs that you would run yourself."
)


@dataclass(frozen=True)
class Sample:
    """One answer to a problem."""

    task_id: str
    completion: str
    """of the problem's prompt"""
    whole: bool = False
    """it is a whole program instead, which does not go on from the prompt"""


@dataclass(frozen=True)
class Verdict:
    """Whether a sample is right."""

    passed: bool
    result: str
    """"passed", "failed: ...", "timed out", "memory", "crashed: ..." or "not judged: ..." """
    together: bool = False
    """the tests had to run in one process with the program, which can therefore forge the result"""
    judged: bool = True
    """the problem's tests could be run"""

    def fields_of_line(self) -> dict[str, Any]:
        """What a line of results.jsonl says besides the sample."""
        passed = self.passed if self.judged else None
        return {"passed": passed, "result": self.result} | ({"together": True} if self.together else {})


def judge(
    problems: Sequence[Problem],
    samples: Iterable[Sample],
    *,
    workers: int = 2,
    timeout: float = 3.0,
    memory_mib: int = 1024,
    unsafe: bool = False,
    site_packages: Path | None = None,
) -> Iterator[Verdict]:
    """Verdicts in the order of the samples, of which a few are taken in advance.

    timeout: seconds of wall-clock time for a program (for a script, for each of its inputs); memory_mib: of its
    processes and files together; site_packages: a folder of packages that programs and tests may import.  UserError
    where programs cannot be isolated (unless `unsafe`), for a sample of an unknown problem, for values out of range,
    and if no problem can be judged.
    """
    launch = launched(workers, timeout, memory_mib, unsafe, site_packages)
    return verdicts(launch, checked(launch, problems), samples, workers)


def launched(workers: int, timeout: float, memory_mib: int, unsafe: bool, site_packages: Path | None) -> Launch:
    """A way to start servers.  UserError where programs cannot be isolated (unless `unsafe`), and as `check_limits`."""
    check_limits(workers, timeout, memory_mib)
    if unsafe:
        log(WARNING)
    return prepare(Limits(timeout, memory_mib), unsafe=unsafe, packages=site_packages)


def check_limits(workers: int, timeout: float, memory_mib: int) -> None:
    """UserError if nothing could be judged within them."""
    if workers < 1 or not 0 < timeout <= A_DAY or memory_mib < 64:
        given = f"workers {workers}, timeout {timeout}, memory {memory_mib}"
        raise UserError(f"{given}: there must be a worker, some time up to a day, and 64 MiB of memory or more")


def verdicts(launch: Launch, problems: Sequence[Problem], samples: Iterable[Sample], workers: int) -> Iterator[Verdict]:
    """As `judge`, of problems that are `checked`."""
    known = {problem.task_id: problem for problem in problems}
    pending: deque[Future[Verdict]] = deque()
    with closing(Pool(launch, workers)) as pool:
        for sample in samples:
            if sample.task_id not in known:
                raise UserError(f"a sample is of {sample.task_id!r}, which is not among the problems")
            pending.append(pool.submit(known[sample.task_id], sample))
            if len(pending) > AHEAD * workers:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()


class Pool:
    """Threads, each with a pair of servers of its own."""

    def __init__(self, launch: Launch, workers: int) -> None:
        self._launch = launch
        self._stopping = threading.Event()
        self._local = threading.local()
        self._workers: list[Worker] = []
        self._shared: dict[str, bool] = {}
        self._deciding = threading.Lock()
        self._turns = Turns(workers)
        self._threads = ThreadPoolExecutor(workers, thread_name_prefix="judge")

    def submit(self, problem: Problem, sample: Sample) -> Future[Verdict]:
        return self._threads.submit(self._judge, problem, sample)

    def close(self) -> None:
        """Drop what has not begun, stop what has, and end the servers."""
        self._stopping.set()
        self._threads.shutdown(cancel_futures=True)
        for worker in self._workers:
            worker.close()

    def _judge(self, problem: Problem, sample: Sample) -> Verdict:
        """Apart from its tests if they can be.  The verdict depends on problem and sample, not on samples before it."""
        if problem.fault:
            return Verdict(False, f"not judged: {problem.fault}", judged=False)
        source = problem.source(sample.completion, whole=sample.whole)
        outcome = self._outcome(problem, source)
        if isinstance(problem.tests, Cases):
            return Verdict(outcome.passed, outcome.result)
        if problem.tests.together or outcome.passed:
            return Verdict(outcome.passed, outcome.result, problem.tests.together)
        if outcome.cannot_travel == "tests" or self._is_shared(problem):
            other = self._outcome(problem, source, together=True)
            if other.passed or outcome.cannot_travel:
                return Verdict(other.passed, other.result, together=True)
        return Verdict(outcome.passed, outcome.result)

    def _outcome(self, problem: Problem, source: str, *, together: bool = False) -> Outcome:
        """Of the first job that fails, else of the last."""
        if not hasattr(self._local, "worker"):
            self._local.worker = Worker(self._launch, self._stopping)
            self._workers.append(self._local.worker)
        outcomes: Iterator[Outcome] = map(self._run, jobs(problem, source, together=together))
        for outcome in outcomes:
            if not outcome.passed:
                break
        return outcome

    def _run(self, job: dict[str, Any]) -> Outcome:
        """A program that lacked time while others had the processor gets another try, by itself."""
        worker: Worker = self._local.worker
        with self._turns.beside_others():
            outcome = worker.run(job)
        if worker.starved:
            with self._turns.alone():
                outcome = worker.run(job)
        return outcome

    def _is_shared(self, problem: Problem) -> bool:
        """Whether its known solution, too, fails apart from the tests, and passes together.

        A sample alone, which may be hostile, cannot bring this about.
        """
        with self._deciding:
            if problem.task_id not in self._shared:
                known = None if problem.canonical is None else problem.source(problem.canonical)
                self._shared[problem.task_id] = (
                    known is not None
                    and not self._outcome(problem, known).passed
                    and self._outcome(problem, known, together=True).passed
                )
            return self._shared[problem.task_id]


class Turns:
    """Of threads that do something beside each other or one of them alone."""

    def __init__(self, threads: int) -> None:
        self._threads = threads
        self._places = threading.Semaphore(threads)
        self._collecting = threading.Lock()

    @contextmanager
    def beside_others(self) -> Iterator[None]:
        with self._places:
            yield

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Waits until all others are done with what they are at."""
        with self._collecting:
            for _ in range(self._threads):
                self._places.acquire()
            try:
                yield
            finally:
                self._places.release(self._threads)


def jobs(problem: Problem, source: str, *, together: bool = False) -> Iterator[dict[str, Any]]:
    """What the sandbox has to do for a program: one job, or for a script one for each input.

    together: in one process with Python tests, even if the problem does not ask for it.
    """
    tests = problem.tests
    program = {"source": source, "imports": problem.imports}
    if not isinstance(tests, Cases):
        if together or tests.together:
            yield {"kind": "together", "source": f"{source}\n{tests.program}"}
        else:
            code = {"prelude": tests.prelude, "remote": list(tests.remote), "program": tests.program}
            yield {"kind": "tests", **program, **code}
    elif tests.function is not None:
        cases = {"inputs": list(tests.inputs), "outputs": list(tests.outputs)}
        yield {"kind": "calls", **program, "function": tests.function, **cases}
    else:
        for stdin, stdout in zip(tests.inputs, tests.outputs, strict=True):
            yield {"kind": "script", **program, "stdin": stdin, "stdout": stdout}


def pass_at_k(n: int, c: int, k: int) -> float:
    """The unbiased estimate of the chance that one of k samples is right, from n of which c are (Chen et al. 2021).

    UserError unless 0 <= c <= n and 1 <= k <= n: fewer than k samples tell nothing about k.
    """
    if not (0 <= c <= n and 1 <= k <= n):
        raise UserError(f"no pass@{k} from {n} samples of which {c} are right; it needs 1 <= k <= n and 0 <= c <= n")
    if n - c < k:
        return 1.0
    return float(1.0 - np.prod(1.0 - k / np.arange(n - c + 1, n + 1)))


@dataclass(frozen=True)
class Command:
    """Judge samples in a sandbox, and estimate pass@k.

    An example:

        python -m bytemtp.evaluate execute --problems HumanEval.jsonl.gz --samples samples.jsonl --out judged

    A line of the samples is {"task_id": ..., "completion": ...} (or "solution").  OUT/results.jsonl has the same lines
    with "passed" and "result", OUT/summary.json the totals.  A run that was stopped goes on when started again.
    """

    problems: Path
    """HumanEval, MBPP or APPS as .jsonl, .jsonl.gz or .jsonl.zst"""
    out: Path
    """folder for the results"""
    samples: tyro.conf.DisallowNone[Path | None] = None
    """the completions to judge, as .jsonl, .jsonl.gz or .jsonl.zst"""
    canonical: tyro.conf.FlagCreatePairsOff[bool] = False
    """judge the solutions in the problem file instead of samples, to check the problems and the sandbox"""
    timeout: float = 3.0
    """seconds for a program; for one that reads standard input, for each input"""
    workers: int = 0
    """programs at a time; 0 means as many as there are processors"""
    k: tyro.conf.DisallowNone[tuple[int, ...] | None] = None
    """estimate pass@k for these; unless given, for those of 1, 10 and 100 that there are enough samples for"""
    memory: int = 1024
    """MiB for a program, with its processes and files"""
    site_packages: tyro.conf.DisallowNone[Path | None] = None
    """folder of packages that programs and tests may import, as numpy: a site-packages of the sandbox's Python"""
    unsafe: tyro.conf.FlagCreatePairsOff[bool] = False
    """run the programs without isolation"""

    def main(self) -> None:
        if self.canonical == (self.samples is not None):
            raise UserError("give either --samples FILE or --canonical")
        workers = self.workers or len(os.sched_getaffinity(0))
        check_limits(workers, self.timeout, self.memory)
        problems = read_problems(self.problems)
        lines = canonical_lines(problems) if self.samples is None else read_lines_of(self.samples, problems)
        samples = list(map(sample_of, lines))
        launch = launched(workers, self.timeout, self.memory, self.unsafe, self.site_packages)
        problems = checked(launch, problems)
        ks = chosen_k(judgeable(problems), samples, self.k)
        begun = time.monotonic()
        judged, new = judged_lines(launch, problems, samples, lines, self.out / "results.jsonl", workers)
        seconds = time.monotonic() - begun
        summary = summarised(problems, judged, ks)
        path = self.out / "summary.json"
        summary |= speed(new, seconds, path)
        write_json(path, summary)
        print(json.dumps(summary, indent=1))


def judged_lines(
    launch: Launch,
    problems: Sequence[Problem],
    samples: Sequence[Sample],
    lines: Sequence[dict[str, Any]],
    path: Path,
    workers: int,
) -> tuple[Judged, int]:
    """Results of all samples, those at `path` completed, and how many are new.  `lines` are the samples' own."""
    results = continued(path, lines)
    known = {problem.task_id: problem for problem in problems}
    sources = ((known[s.task_id], known[s.task_id].source(s.completion, whole=s.whole)) for s in samples)

    def judge_these(numbers: list[int]) -> Iterator[dict[str, Any]]:
        for verdict in verdicts(launch, problems, [samples[i] for i in numbers], workers) if numbers else ():
            yield verdict.fields_of_line()

    return completed(results, lines, digests(launch, sources), judge_these)


def speed(new: int, seconds: float, summary: Path) -> dict[str, float]:
    """Of the programs just judged; if none were, what the summary of an earlier run says."""
    if new:
        return {"seconds": round(seconds, 3), "programs_per_s": round(new / seconds, 3)}
    old = read_object(summary) if summary.exists() else {}
    return {name: old[name] for name in ("seconds", "programs_per_s") if name in old}


def sample_of(line: dict[str, Any]) -> Sample:
    """A "solution" is a whole program, unless its code begins indented: then it goes on from the prompt."""
    if "completion" in line:
        return Sample(str(line["task_id"]), str(line["completion"]))
    solution = str(line["solution"])
    code = (row.lstrip("\f") for row in solution.splitlines() if row.strip() and not row.lstrip().startswith("#"))
    return Sample(str(line["task_id"]), solution, whole=not next(code, "")[:1].isspace())


def read_lines_of(path: Path, problems: Sequence[Problem]) -> list[dict[str, Any]]:
    """The samples of a file, without verdicts that it may have of earlier.

    UserError names the line that is no sample of one of the problems.
    """
    known = {problem.task_id for problem in problems}
    lines = []
    for number, line in records(path):
        completion = line.get("completion", line.get("solution"))
        if "task_id" not in line or not isinstance(completion, str):
            raise UserError(f'{path}, line {number} must have a "task_id" and a text "completion" (or "solution")')
        if str(line["task_id"]) not in known:
            raise UserError(f"{path}, line {number} is of {line['task_id']!r}, which is not among the problems")
        lines.append({name: value for name, value in line.items() if name not in VERDICT_FIELDS})
    if not lines:
        raise UserError(f"{path} has no samples")
    return lines


def canonical_lines(problems: Sequence[Problem]) -> list[dict[str, Any]]:
    lines = [{"task_id": p.task_id, "completion": p.canonical} for p in problems if p.canonical is not None]
    if not lines:
        raise UserError("no problem has a solution to judge; --canonical needs canonical_solution, code or solutions")
    return lines


def chosen_k(problems: Sequence[Problem], samples: Sequence[Sample], asked: tuple[int, ...] | None) -> list[int]:
    """Those k that every problem has enough samples for.  UserError if one that was asked for is not among them."""
    counts = Counter(sample.task_id for sample in samples)
    fewest = min(problems, key=lambda problem: counts[problem.task_id])
    enough = counts[fewest.task_id]
    for k in asked or ():
        if not 1 <= k <= enough:
            raise UserError(f"pass@{k} needs 1 <= k <= samples of every problem; {fewest.task_id} has {enough}")
    if not enough:
        log(f"no pass@k: {fewest.task_id} has no sample")
    return [k for k in asked or DEFAULT_K if k <= enough]


def scored(problems: Sequence[Problem], judged: Judged) -> tuple[list[Problem], Judged, dict[str, str]]:
    """The problems that can be judged, the results that have a verdict, and why the other problems have none."""
    faults = {problem.task_id: problem.fault for problem in problems if problem.fault}
    return judgeable(problems), [line for line in judged if str(line["task_id"]) not in faults], faults


def summarised(problems: Sequence[Problem], judged: Judged, ks: Sequence[int]) -> dict[str, Any]:
    """pass@k, the mean over all problems that can be judged, and the counts."""
    problems, judged, faults = scored(problems, judged)
    counts = Counter(str(line["task_id"]) for line in judged)
    right = Counter(str(line["task_id"]) for line in judged if line["passed"])
    means = {
        f"pass@{k}": float(np.mean([pass_at_k(counts[p.task_id], right[p.task_id], k) for p in problems])) for k in ks
    }
    return {
        **means,
        "problems": len(problems),
        "samples": len(judged),
        "passed": right.total(),
        "judged_together": sum(line.get("together", False) for line in judged),
        "not_judged": faults,
    }

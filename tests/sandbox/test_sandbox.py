"""The sandbox against programs that attack it, and with honest ones: programs/hostile.txt and programs/honest.txt.

Each line of "Covered" in docs/sandbox.md has its test here or a program there.
"""

import errno
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest

from bytemtp.common.errors import UserError
from bytemtp.evaluation.code.execute import Sample, Verdict, jobs, judge
from bytemtp.evaluation.code.problems import Problem, problem_of
from bytemtp.sandbox import launch
from bytemtp.sandbox import prepare as prepare_module
from bytemtp.sandbox.candidate import compiled
from bytemtp.sandbox.launch import Limits
from bytemtp.sandbox.lockdown import MOST_PROCESSES
from bytemtp.sandbox.prepare import prepare
from bytemtp.sandbox.referee import LONGEST
from bytemtp.sandbox.worker import Worker, how_it_ended

ROOT = Path(__file__).parents[2]
PROGRAMS = Path(__file__).parent / "programs"

needs_bubblewrap = pytest.mark.skipif(shutil.which("bwrap") is None, reason="bubblewrap (bwrap) is not installed")


GENERATED = {
    "@deep": f"x = {'-' * 200_000}1",
    "@longer": f"def double(x):\n    return 2 * x\n# {'x' * (1 << 25)}",
    "@sum": f"print({'+'.join(['1'] * 2500)})\nif True:\n    return",
    "@long": f"x = '{'x' * 5_000_000}'\ndef double(x):\n    return 2 * x",
}


def programs(file: str) -> dict[str, tuple[str, list[str], str]]:
    """Name -> problem, beginnings of the results expected, source."""
    found = {}
    for block in (PROGRAMS / file).read_text("utf-8").split("\n#: ")[1:]:
        head, _, source = block.partition("\n")
        name, problem, *expected = head.split(" | ")
        found[name] = (
            problem,
            expected[0].split(" or ") if expected else ["passed"],
            GENERATED.get(source.strip(), source),
        )
    return found


HOSTILE, HONEST = programs("hostile.txt"), programs("honest.txt")


def code_of(problem: str) -> str:
    """The first of the honest programs; one that is wrong where there is none."""
    return next((source for name, _, source in HONEST.values() if name == problem), f"def {problem}(): pass")


def asserts_of(name: str, tests: str) -> Problem:
    """A problem judged by Python code."""
    return problem_of({"task_id": name, "text": "", "code": code_of(name), "test_setup_code": "", "test_list": [tests]})


def cases_of(name: str, *cases: tuple[object, object], function: str | None = None) -> Problem:
    inputs, outputs = map(list, zip(*cases, strict=True))
    tests = {"inputs": inputs, "outputs": outputs} | ({"fn_name": function} if function else {})
    return problem_of({"task_id": name, "question": "", "starter_code": "", "input_output": json.dumps(tests)})


VALUES = """\
from collections import Counter, OrderedDict, deque
from decimal import Decimal
from fractions import Fraction
for which, value in {
    "bytes": b"\\x00\\xff", "bytearray": bytearray(b"ab"), "complex": 1 + 2j, "frozenset": frozenset({1}),
    "range": range(3), "deque": deque([1]), "counter": Counter("aab"), "ordered": OrderedDict(b=1, a=2),
    "defaultdict": {1: [2]}, "decimal": Decimal("1.10"), "fraction": Fraction(1, 3), "enum": 7, "text": "x",
    "point": (1, 2), "big": 7 ** 9999, "inf": float("inf"), "surrogate": "\\ud83d\\ude00", "keys": {1}, "type": int,
    "nested": [({1: {2: (None, True)}},)],
}.items():
    assert values(which) == value, which
assert values("ordered") != OrderedDict(a=2, b=1)"""

NATURALS = """\
from itertools import islice
assert list(islice(naturals(1), 40)) == [*range(1, 41)] and sum(islice(naturals(0), 200000)) == 19999900000
numbers = naturals(5)
assert next(numbers) == 5 and numbers.send(-1) == 'sent' and next(numbers) == 6
late = naturals(None)
assert next(late) is None
try:
    next(late)
except ValueError as error:
    assert error.args == ("late",)
else:
    assert False"""

FOLD = """\
import operator
from itertools import count
assert fold(lambda a, b: a * b, [2, 3, 4]) == 24 and fold(operator.add, iter("abc")) == "abc"
assert fold(max, (x * x for x in (-3, 1))) == 9 and fold(lambda a, b: a + b, count(1), most=100) == 5050
seen = []
def checked(a, b):
    seen.append((a, b))
    if b == 0:
        raise ZeroDivisionError("no", b)
    return fold(operator.floordiv, [a, b])
assert fold(checked, [9, 2, 1]) == 4 and seen == [(9, 2), (4, 1)]
try:
    fold(checked, [1, 0])
except ZeroDivisionError as error:
    assert error.args == ("no", 0)
else:
    assert False"""

SHELF = """\
it = shelf([1, 2])
assert it.push(3) is None and it.items == [1, 2, 3] and len(it) == 3 and it[0] == 1 and it
assert list(it) == [1, 2, 3] and str(it) == "shelf"
it[0] = it.name = 9
assert it.name == 9 and [*map(it.twice, [1, 2])] == [2, 4]
with it as inside:
    assert inside == "in"
assert it.name == "out" """

DATES = """\
import datetime as d
from pathlib import Path
assert dates("2024-02-29") == [d.date(2024, 2, 29), d.timedelta(1, 2, 3), Path("/tmp/x")]
noon = d.datetime(2020, 1, 1, 12, tzinfo=d.timezone.utc)
assert dates(noon).hour == 14 and dates(noon) == noon and dates(d.time(1, 2)) == d.time(1, 2)"""

PICKY = """\
def check(candidate):
    assert candidate(2) == 4 and candidate.__name__ == "picky"
    candidate.calls = 7
    assert candidate.calls == 7
    for wrong in (object(), None, "x", [], lambda: 1, int, NotImplemented):
        try:
            candidate(wrong)
        except TypeError as error:
            assert str(error) == "no number"
        else:
            assert False
check(picky)"""

ERRORS = """\
import json
for case in ("file", "json", "cause"):
    try:
        errors(case)
    except FileNotFoundError as error:
        assert case == "file" and (error.errno, error.filename) == (2, "/missing")
    except json.JSONDecodeError as error:
        assert case == "json" and (error.pos, error.doc) == (1, "{")
    except RuntimeError as error:
        assert case == "cause" and isinstance(error.__cause__, KeyError)
    else:
        assert False"""

UNIT = """\
import unittest
class Test(unittest.TestCase):
    def test(self):
        self.assertEqual(unit(1), 2)
        with self.assertRaises(ValueError):
            unit(-1)
assert unittest.TextTestRunner(stream=open("/dev/null", "w")).run(Test("test")).wasSuccessful()"""

CHANGED = """\
from collections import deque
queue, data, rows = deque([1, 2, 3], 3), bytearray(b"a"), [[1], [2]]
first = rows[0]
assert changed(queue, data, rows) is rows and queue == deque([3, 1, 2]) and data == b"ab"
assert rows == [[2], [1, 1]] and rows[1] is first
shared = [[]] * 2
changed(deque(), bytearray(), shared)
assert shared == [[1], [1]] and shared[0] is shared[1]"""

SEEDED = """\
import random
random.seed(3)
expected = [random.random() for _ in range(4)]
random.seed(3)
assert seeded(4) == expected"""

SPEND = {
    "task_id": "spend",
    "entry_point": "spend",
    "prompt": """\
class TooPoor(Exception):
    def __init__(self, needed, *, code):
        super().__init__(f"{needed} more")
        self.needed, self.code = needed, code


def spend(have, amount):
""",
    "test": """\
def check(candidate):
    assert candidate(5, 3) == 2
    try:
        candidate(1, 3)
    except TooPoor as error:
        assert (error.needed, error.code, str(error)) == (2, 7, "2 more")
    else:
        assert False
""",
}

RAISES = """\
for kind, expected in {"value": ValueError, "own": LookupError, "key": KeyError, "unicode": UnicodeError}.items():
    try:
        raises(kind)
    except expected as error:
        assert kind != "value" or error.args == ("bad", 3)
        assert kind != "key" or str(error) == "'missing'"
    else:
        assert False"""

PROBLEMS = {
    problem.task_id: problem
    for problem in [
        asserts_of("double", 'assert double(2) == 4\nassert double("ab") == "abab"\nassert double([1]) == [1, 1]'),
        asserts_of("looped", "for y in map(looped, [1, 2]):\n    assert y == 3"),
        asserts_of("swallow", "try:\n    swallow(1)\nexcept:\n    pass"),
        asserts_of(
            "in_place",
            "last = [3]\nitems = [last, [1]]\ntable = {'old': 1}\nassert in_place(items, table) is None\n"
            "assert items == [[1], [3, 9]] and table == {'new': 1}",
        ),
        asserts_of("raises", RAISES),
        asserts_of("adder", "assert adder(1)(2) == 3\nadd = adder(10)\nassert [add(1), add(2)] == [11, 12]"),
        asserts_of("values", VALUES),
        asserts_of("lazy", "assert list(lazy('map')) == ['1', '2'] and [*lazy('generator')] == [0, 1, 2]"),
        asserts_of("apply", "assert apply(str, [1]) == ['1']\nassert apply(len, ['ab']) == [2]"),
        asserts_of(
            "keywords",
            "assert keywords(1) == (1, (), 2, {})\nassert keywords(1, 2, b=3, c=4) == (1, (2,), 3, {'c': 4})",
        ),
        asserts_of("naturals", NATURALS),
        asserts_of("fold", FOLD),
        asserts_of("shelf", SHELF),
        asserts_of("dates", DATES),
        asserts_of("picky", PICKY),
        asserts_of("errors", ERRORS),
        asserts_of("unit", UNIT),
        asserts_of("changed", CHANGED),
        asserts_of("seeded", SEEDED),
        problem_of(SPEND),
        asserts_of("later", "import asyncio\nassert asyncio.run(later(1)) == 2"),
        asserts_of("match", "assert match('a1').group(1) == 'a' and match('b2') and match('??') is None"),
        asserts_of("pair", "p = pair(1, 2)\nassert p == (1, 2) and p.first == 1 and p._fields == ('first', 'last')"),
        asserts_of("groups", "g = groups(['a', 'bb'])\nassert g == {1: ['a'], 2: ['bb']} and g[9] == [] and 9 in g"),
        asserts_of("sevenths", "r = sevenths(10 ** 6)\nassert len(r) == 10 ** 6 and r[7] == 1.0"),
        asserts_of("total", "assert total(list(range(10 ** 6))) == 499999500000"),
        asserts_of("nest", "r, d = nest(900), 0\nwhile r:\n    r, d = r[0], d + 1\nassert d == 900"),
        asserts_of("squares", "assert list(squares(3)) == [0, 1, 4]"),
        asserts_of("member", "assert 4 in member(2)"),
        asserts_of("entered", "with entered(2) as value:\n    assert value == 4"),
        asserts_of("calls", "secret = 12345\nassert calls(lambda value: secret - 1) == 12345"),
        cases_of("echo", ("a b\nä\n", "a b\nä\n"), ("1\n2", "1\n2\n")),
        cases_of("twice", ("1\n", "1\n"), ("2\n", "2\n")),
        cases_of("first", ("x\n" + "y\n" * 200000, "x")),
        cases_of("million", ("", "\n".join(map(str, range(100000))))),
        cases_of("third", ("", "0.333333")),
        cases_of("infinite", ("", "INF")),
        cases_of("vast", ("", "7" * 400)),
        cases_of("prime", ("", "1000000007")),
        cases_of("three", ([], [1, 2, 3]), function="three"),
        cases_of("add", ([1, 2], 3), ([[1], [2]], [1, 2]), function="add"),
        cases_of("pairs", ([2], [[0, 0], [1, 1]]), function="pairs"),
    ]
}


def judged(listed: dict[str, tuple[str, list[str], str]], **options: object) -> dict[str, Verdict]:
    samples = [Sample(problem, source) for problem, _, source in listed.values()]
    return dict(zip(listed, judge(list(PROBLEMS.values()), samples, **options), strict=True))


TOGETHER = {"lazy", "naturals", "fold", "adder", "shelf", "picky", "later", "match", "calls"}
"""Program and tests share functions, iterators, objects or coroutines, so that no solution can do without."""


@pytest.fixture(scope="module")
def hostile_verdicts():
    """With every program of the list in the same two workers: one that breaks a worker spoils those after it.

    Those that should have ended in time have more of it the second time: the machine may be busy.
    """
    right = {f"right {i}": ("double", ["passed"], "def double(x):\n    return x + x") for i in range(4)}
    programs = {**HOSTILE, **right}
    verdicts = judged(programs, timeout=1.5, memory_mib=192)
    late = [name for name, verdict in verdicts.items() if verdict.result == "timed out"]
    again = {name: programs[name] for name in late if "timed out" not in programs[name][1]}
    return verdicts | judged(again, timeout=30.0, memory_mib=192)


@pytest.fixture(scope="module")
def honest_verdicts():
    return judged(HONEST, timeout=30.0)


@needs_bubblewrap
@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_program(name, hostile_verdicts):
    """None gets its tests into its own process; those of `calls` hand it a function, and are there from the start."""
    problem, expected, _ = HOSTILE[name]
    result = hostile_verdicts[name].result
    assert result.startswith(tuple(expected)), result
    assert hostile_verdicts[name].together == (problem == "calls")


@needs_bubblewrap
def test_verdicts_are_those_recorded(hostile_verdicts, honest_verdicts):
    """Word for word, where the list only names their beginnings; but for two, in which processes race, and for those
    that may run out of time, as on a busy machine."""
    recorded = json.loads((PROGRAMS.parents[1] / "golden" / "verdicts.json").read_text())
    now = hostile_verdicts | honest_verdicts
    late = {name for name in HOSTILE if "timed out" in HOSTILE[name][1] and now[name].result == "timed out"}
    recorded = {name: result for name, result in recorded.items() if name not in late}
    assert {name: without_end(now[name].result) for name in recorded} == {
        name: without_end(result) for name, result in recorded.items()
    }


def without_end(result: str) -> str:
    return "crashed" if result.startswith("crashed") else result


@needs_bubblewrap
def test_right_programs_pass_after_all_hostile_ones(hostile_verdicts):
    assert [hostile_verdicts[f"right {i}"].result for i in range(4)] == ["passed"] * 4


@needs_bubblewrap
@pytest.mark.parametrize("name", HONEST)
def test_honest_program(name, honest_verdicts):
    assert honest_verdicts[name] == Verdict(True, "passed", together=HONEST[name][0] in TOGETHER)


@pytest.mark.parametrize(
    ("script", "output"),
    [
        ("print(1)\nif True:\n    return\nprint(2)", "1\n"),
        ("from math import *\ns = '''a\n  b'''\nfor i in range(3):\n    print(s)\n    return", "a\n  b\n"),
        ("def f():\n    return 1\nprint(f())", "1\n"),
        ("return", ""),
    ],
)
def test_a_script_may_return(script, output, capsys):
    exec(compiled(script, "<script>", returns=True), {})
    assert capsys.readouterr().out == output


@pytest.mark.parametrize(("script", "returns"), [("return (", True), ("return", False), ("break", True)])
def test_what_is_wrong_stays_wrong(script, returns):
    with pytest.raises(SyntaxError):
        compiled(script, "<script>", returns=returns)


def test_a_signal_without_a_name_is_told_by_its_number():
    assert how_it_ended(-40).result == "crashed: signal 40" and how_it_ended(-9).result == "crashed: SIGKILL"


def test_the_lists_are_long_and_their_names_unique():
    heads = [
        line
        for file in ("hostile.txt", "honest.txt")
        for line in (PROGRAMS / file).read_text("utf-8").split("\n#: ")[1:]
    ]
    assert len(heads) == len(HOSTILE | HONEST) and len(HOSTILE) >= 130


@pytest.fixture(scope="module")
def way():
    return prepare(Limits(10.0))


@pytest.fixture
def worker(way):
    worker = Worker(way)
    yield worker
    worker.close()


def outcome(worker, source, program="", remote=("f",)):
    return worker.run({"kind": "tests", "source": source, "prelude": "", "remote": list(remote), "program": program})


@needs_bubblewrap
@pytest.mark.parametrize(
    ("source", "tests", "what", "by"),
    [
        ("def f(x): return (i for i in x)", "f([1])", "f returned a generator, which is no plain value", "program"),
        ("def f(x): return {1: [map(str, x)]}", "f([1])", "f returned a map, which is no plain value", "program"),
        ("def f(x): x.append(object())", "f([])", "f returned an object, which is no plain value", "program"),
        ("def f(x): return f", "f(1)", "f returned a function, which is no plain value", "program"),
        ("async def f(x): pass", "f(1)", "f returned a coroutine, which is no plain value", "program"),
        ("def f(x): pass", "g = lambda: 1\nf([g])", "f was given a function, which is no plain value", "tests"),
        ("def f(x): pass", "f(x=iter([]))", "f was given a list_iterator, which is no plain value", "tests"),
        (
            "def f(x): raise ValueError",
            "try:\n    f(1)\nexcept ValueError as e:\n    f(e)",
            "f was given a ValueError, which is no plain value",
            "program",
        ),
        (
            "def f(x): return iter(x)",
            "try:\n    f([])\nexcept BaseException:\n    f(lambda: 1)",
            "f returned a list_iterator, which is no plain value",
            "program",
        ),
        ("def f(x): pass", "f(f)", "f was given a Function, which is no plain value", "tests"),
        ("def f(x): pass\nf.calls = 0", "assert f.calls == 0", "f.calls is out of the tests' reach", "tests"),
        (
            "def f(x): pass",
            "import inspect\ninspect.signature(f)",
            "f.__signature__ is out of the tests' reach",
            "tests",
        ),
    ],
)
def test_what_cannot_travel_fails_and_is_told(worker, source, tests, what, by):
    """Also where the tests would go on."""
    swallowed = f"try:\n{textwrap.indent(tests, '    ')}\nexcept BaseException:\n    pass"
    for program in (tests, swallowed):
        assert outcome(worker, source, program)[:3] == (False, f"failed: TypeError: {what}", by)
    same = "from collections import deque\nassert f([str, len, deque]) == [str, len, deque]"
    assert outcome(worker, "def f(x): return x", same)[:3] == (True, "passed", None)


@needs_bubblewrap
def test_what_a_function_has_besides_does_not_disturb_libraries(worker):
    tests = "import asyncio, functools\n@functools.wraps(f)\ndef g(x): return f(x)\n"
    tests += "assert g.__name__ == 'f' and g(1) == 2 and not asyncio.iscoroutinefunction(f) and not hasattr(f, '_x')"
    assert outcome(worker, "def f(x): return x + 1", tests)[:3] == (True, "passed", None)


@needs_bubblewrap
@pytest.mark.parametrize(
    ("before", "after"), [([1, 0], [1.0, 0.0]), ([1, 0], [True, False]), ([0.0], [-0.0]), ([(1,)], [(1.0,)])]
)
def test_a_change_of_type_alone_is_a_change(worker, before, after):
    tests = f"x = {before}\nf(x)\nassert repr(x) == {repr(after)!r}, x"
    assert outcome(worker, f"def f(x): x[:] = {after}", tests).result == "passed"


@needs_bubblewrap
@pytest.mark.parametrize(
    ("helper", "result"),
    [
        ("", "passed"),
        ("def abs(x): return 1", "failed: AssertionError: assert abs(f(2) - 4) < 1e-6"),
        ("del f", "failed: NameError: name 'f' is not defined"),
    ],
)
def test_a_builtin_serves_where_a_program_lacks_a_helper_of_its_name(worker, helper, result):
    source = f"def f(x): return 2 * x\n{helper}"
    assert outcome(worker, source, "assert abs(f(2) - 4) < 1e-6", remote=("abs", "f")).result == result


@needs_bubblewrap
@pytest.mark.parametrize(
    "steps",
    [
        "a.__cause__ = b\nb.__cause__ = a",
        "import sys\na.__cause__ = ExceptionGroup('g', [a, b]) if sys.version_info >= (3, 11) else b",
    ],
)
def test_an_exception_with_itself_among_its_causes_arrives(worker, steps):
    source = f"a, b = ValueError('a'), ValueError('b')\n{steps}\ndef f(): raise a"
    tests = "try:\n    f()\nexcept ValueError as error:\n    assert str(error) == 'a' and error.__cause__ is not None\n"
    assert outcome(worker, source, f"{tests}else:\n    assert False").result == "passed"


@needs_bubblewrap
def test_a_result_is_short_whatever_a_program_sends(worker):
    source = "import os\ndata = b'[\"return\",[],[\"' + b'x' * 1_000_000 + b'\"]]'\n"
    source += "data = len(data).to_bytes(4, 'little') + data\nwhile data:\n    data = data[os.write(3, data):]"
    result = outcome(worker, source).result
    assert result.startswith("failed: not a message: unknown tag") and len(result) <= LONGEST


@needs_bubblewrap
def test_tests_may_call_from_several_threads(worker):
    tests = "from concurrent.futures import ThreadPoolExecutor\nwith ThreadPoolExecutor(4) as pool:\n"
    tests += "    assert list(pool.map(f, range(50))) == list(range(1, 51))"
    assert outcome(worker, "def f(x): return x + 1", tests).result == "passed"


@pytest.fixture(scope="module")
def bare():
    """A folder with the sandbox alone, which any user and any Python can read and import: ours needs torch."""
    with tempfile.TemporaryDirectory() as folder:
        shutil.copytree(ROOT / "bytemtp" / "sandbox", Path(folder, "bytemtp", "sandbox"))
        Path(folder, "bytemtp", "common").mkdir()
        Path(folder, "bytemtp", "__init__.py").touch()  # or one that PYTHONPATH names comes first
        shutil.copy(ROOT / "bytemtp" / "common" / "errors.py", Path(folder, "bytemtp", "common"))
        os.chmod(folder, 0o755)
        yield folder


@needs_bubblewrap
def test_nothing_carries_over_to_the_next_program(worker):
    leave = """
        import builtins, os, sys, random, socket, threading
        open("/tmp/left", "w").write("x"); open("/dev/shm/left", "w").write("x"); os.chmod("/tmp", 0o700)
        os.environ["LEFT"] = builtins.LEFT = sys.LEFT = "x"; os.umask(0o777); os.chdir("/usr");
        server = socket.socket(socket.AF_UNIX); server.bind("\\0left"); server.listen()
        if os.fork() == 0:
            threading.Event().wait()
        def f(x): return x
        """
    look = """
        import builtins, os, sys, socket
        def f(x):
            try:
                socket.socket(socket.AF_UNIX).connect("\\0left")
            except OSError:
                connected = False
            else:
                connected = True
            return [os.listdir("/tmp"), os.listdir("/dev/shm"), oct(os.stat("/tmp").st_mode), "LEFT" in os.environ,
                hasattr(builtins, "LEFT") or hasattr(sys, "LEFT"), os.getcwd(), connected, "program" in dir()]
        """
    expected = "assert f(1) == [[], [], '0o41777', False, False, '/tmp', False, False], f(1)"
    for _ in range(2):
        assert outcome(worker, textwrap.dedent(leave), "assert f(1) == 1").result == "passed"
        assert outcome(worker, textwrap.dedent(look), expected).result == "passed"


@needs_bubblewrap
def test_source_of_one_program_is_not_in_the_memory_of_the_next(worker):
    assert outcome(worker, "secret = 'tu' + 'lip' * 3  # orchid-orchid", "").passed
    look = """
        import ctypes, gc
        def f(x):
            texts = [repr(o) for o in gc.get_objects() if isinstance(o, (dict, list))]
            return [text[:50] for text in texts if "orchid-" + "orchid" in text]
        """
    assert outcome(worker, textwrap.dedent(look), "assert f(1) == [], f(1)").result == "passed"


@needs_bubblewrap
def test_all_descendants_die_with_the_program(worker):
    """Also those that left its session and group."""
    source = (
        "import os, time\nfor _ in range(5):\n    if os.fork() == 0:\n        os.setsid()\n        time.sleep(1000)\n"
    )
    assert outcome(worker, source).passed
    from bytemtp.sandbox.memory import descendants

    assert list(descendants(worker._servers[0].pid)) == []


@needs_bubblewrap
def test_worker_recovers_when_its_servers_are_killed_or_stopped(way, monkeypatch):
    monkeypatch.setattr(launch, "PATIENCE", 0.5)
    worker = Worker(replace(way, limits=Limits(2.0)))
    for number in (signal.SIGKILL, signal.SIGSTOP):
        assert outcome(worker, "").passed
        for server in worker._servers:
            os.kill(server.pid, number)
        assert outcome(worker, "").result in ("passed", "timed out")
        assert outcome(worker, "").passed
    worker.close()


@needs_bubblewrap
def test_programs_die_with_the_host(bare):
    """Killing the command leaves no process of a sandbox behind."""
    code = """
        import os, sys, time
        from bytemtp.sandbox.launch import Limits
        from bytemtp.sandbox.prepare import prepare
        from bytemtp.sandbox.worker import Worker
        import threading
        worker = Worker(prepare(Limits(60.0)))
        job = {"kind": "tests", "source": "import time\\ntime.sleep(60)", "prelude": "", "remote": [], "program": ""}
        threading.Thread(target=worker.run, args=(job,)).start()
        time.sleep(1.5)
        print(*(server.pid for server in worker._servers), flush=True)
        """
    host = subprocess.Popen([sys.executable, "-c", textwrap.dedent(code)], stdout=subprocess.PIPE, text=True, cwd=bare)
    pids = host.stdout.readline().split()
    assert len(pids) == 2
    host.kill()
    host.communicate()
    deadline = time.monotonic() + 10
    while any(Path("/proc", pid).exists() for pid in pids) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(Path("/proc", pid).exists() for pid in pids)


@needs_bubblewrap
@pytest.mark.skipif(os.geteuid() != 0, reason="becoming an ordinary user needs root")
def test_works_for_an_ordinary_user(way, bare):
    """The inside of the sandbox is the same; a few programs of each list show it."""
    names = [
        "files of others",
        "system calls",
        "network",
        "memory",
        "hidden memory",
        "memory behind a thread that has ended",
        "survivors",
        "kills all",
        "becomes root",
        "wrong",
    ]
    chosen = {name: HOSTILE[name] for name in names} | {name: HONEST[name] for name in ("plain", "script", "processes")}
    code = f"""
import json, os, sys
os.setgroups([]); os.setgid(12345); os.setuid(12345)
from bytemtp.sandbox.launch import Launch, Limits
from bytemtp.sandbox.worker import Worker
worker = Worker(Launch({way.python!r}, {way.prefix!r}, isolated=True, limits=Limits(5.0, 192)))
print(json.dumps([[worker.run(job).result for job in jobs] for jobs in json.load(sys.stdin)]), flush=True)
worker.close()
"""
    todo = [list(jobs(PROBLEMS[problem], source)) for problem, _, source in chosen.values()]
    done = subprocess.run(
        [way.python, "-c", code], input=json.dumps(todo), capture_output=True, text=True, cwd=bare, timeout=120
    )
    assert done.returncode == 0, done.stderr
    for (name, (_, expected, _)), results in zip(chosen.items(), json.loads(done.stdout), strict=True):
        worst = next((result for result in results if result != "passed"), "passed")
        assert worst.startswith(tuple(expected)), (name, worst)


def test_without_bubblewrap_it_refuses_and_says_what_to_do(monkeypatch):
    monkeypatch.setattr(prepare_module.shutil, "which", lambda name: None)
    with pytest.raises(UserError, match=r"bubblewrap.*not installed.*apt install bubblewrap.*--unsafe"):
        judge([], [])


def test_where_bubblewrap_does_not_work_it_refuses(monkeypatch, tmp_path):
    """As where user namespaces are switched off."""
    broken = tmp_path / "bwrap"
    broken.write_text("#!/bin/sh\necho bwrap: no permissions to create new namespace >&2\nexit 1\n")
    broken.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match=r"cannot be isolated here: .*--unsafe"):
        judge([], [])


@needs_bubblewrap
def test_another_python_than_ours_is_told(monkeypatch, capsys):
    def try_out(launch):
        if launch.python == "ours":
            raise UserError("it cannot be read")

    monkeypatch.setattr(prepare_module, "try_out", try_out)
    monkeypatch.setattr(prepare_module, "interpreters", lambda: iter([("ours", "/a"), ("theirs", "/usr")]))
    assert prepare(Limits()).python == "theirs"
    assert capsys.readouterr().err == "programs are run by theirs, because ours: it cannot be read\n"


def test_a_server_that_cannot_be_started_is_named(monkeypatch):
    def refuse(*_, **__):
        raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))

    monkeypatch.setattr(launch.subprocess, "Popen", refuse)
    with pytest.raises(UserError, match=r"^cannot start \S*bwrap: Resource temporarily unavailable$"):
        launch.Launch("python3", "/usr", isolated=True, limits=Limits()).start("candidate")


def test_unsafe_warns_and_gives_the_same_verdicts(capsys):
    """The slow twin: no sandbox around the same two processes."""
    names = ["wrong", "syntax error", "exit in the call", "equal to all", "sleeps", "script that is wrong"]
    chosen = {name: HOSTILE[name] for name in names} | {
        name: HONEST[name] for name in ("plain", "script", "in place") if name in HONEST
    }
    verdicts = judged(chosen, unsafe=True, timeout=3.0)
    assert "WITHOUT ISOLATION" in capsys.readouterr().err
    for name, (_, expected, _) in chosen.items():
        assert verdicts[name].result.startswith(tuple(expected)), (name, verdicts[name])


def test_unsafe_programs_leave_no_folders():
    """The number of a process comes again; a program must not find files of another then."""
    worker = Worker(prepare(Limits(10.0), unsafe=True))
    source = (
        "import os\nopen('left', 'w').close()\ndef f(): return [os.listdir('..') == [os.path.basename(os.getcwd())]]"
    )
    for _ in range(2):
        assert outcome(worker, source, "assert f() == [True]").result == "passed"
    worker.close()


@needs_bubblewrap
@pytest.mark.parametrize("unsafe", [False, True])
def test_processes_are_limited_for_isolated_programs_only(unsafe):
    """Without isolation all that the user runs would count."""
    worker = Worker(prepare(Limits(10.0), unsafe=unsafe))
    source = "import resource\ndef f(): return resource.getrlimit(resource.RLIMIT_NPROC)"
    expected = resource.getrlimit(resource.RLIMIT_NPROC) if unsafe else (MOST_PROCESSES, MOST_PROCESSES)
    assert outcome(worker, source, f"assert f() == {expected}, f()").result == "passed"
    worker.close()


@needs_bubblewrap
def test_tests_are_never_in_the_process_of_the_program(worker):
    """The candidate's server and its child: their memory, searched from outside as root could, lacks the tests."""
    source = "import time\ndef f(x):\n    time.sleep(1.5)\n    return 4\n"
    expected = "assert f(1) == int('1357' '2468')  # marigold-marigold"
    seen: list[bool] = []
    assert outcome(worker, "").passed

    def look():
        from bytemtp.sandbox.memory import descendants

        time.sleep(0.7)
        pids = [worker._servers[0].pid, *descendants(worker._servers[0].pid)]
        assert len(pids) == 2
        seen.extend(b"marigold-marigold" in memory_of(pid) for pid in pids)
        seen.append(b"time.sleep(1.5)" in memory_of(pids[1]))

    thread = threading.Thread(target=look)
    thread.start()
    result = outcome(worker, source, expected)
    thread.join()
    assert "marigold" in result.result  # the failing line
    assert seen == [False, False, True]


def memory_of(pid: int) -> bytes:
    pieces = []
    with open(f"/proc/{pid}/maps") as maps, open(f"/proc/{pid}/mem", "rb", 0) as memory:
        for line in maps:
            low, high = (int(part, 16) for part in line.split()[0].split("-"))
            if " rw" in line:
                memory.seek(low)
                pieces.append(memory.read(high - low))
    return b"".join(pieces)


@needs_bubblewrap
def test_a_host_with_a_thousand_open_files_judges_as_any_other():
    """And none of its descriptors, which are high then, is the program's."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < 1400:
        pytest.skip("this process may not open as many files")
    resource.setrlimit(resource.RLIMIT_NOFILE, (1400, hard))
    files = [os.open(os.devnull, os.O_RDONLY) for _ in range(1100)]
    looks = (
        "import os\nfor fd in range(4, 1400):\n    try:\n        os.fstat(fd)\n    except OSError:\n        continue\n"
    )
    looks += "    raise SystemExit(fd)\n"
    try:
        samples = [Sample("double", looks + "def double(x):\n    return 2 * x"), Sample("echo", WHOLE_INPUT)]
        problems = [PROBLEMS[sample.task_id] for sample in samples]
        assert [verdict.result for verdict in judge(problems, samples)] == ["passed", "passed"]
    finally:
        for file in files:
            os.close(file)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


WHOLE_INPUT = "import sys\nsys.stdout.write(sys.stdin.read())"

"""Problem files: formats found by their fields, prompts, where completions end, and errors that name the line."""

import ast
import gzip
import json
import sys
import warnings

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from bytemtp.common.errors import UserError
from bytemtp.evaluation.code.apart import FunctionTests
from bytemtp.evaluation.code.problems import Cases, judgeable, problem_of, read_problems, truncate, with_whole_keys

HUMANEVAL = {
    "task_id": "HumanEval/0",
    "prompt": 'import math\n\n\ndef half(x):\n    """Half of x."""\n',
    "entry_point": "half",
    "canonical_solution": "    return x / 2\n",
    "test": "def check(candidate):\n    assert math.isclose(candidate(1), 0.5)\n",
}
MBPP = {
    "task_id": 11,
    "text": "Write a function to add.",
    "code": "import math\r\ndef add(a, b):\r\n  return a + b",
    "test_list": ["assert math.isclose(add(1, 2), 3)", "assert add(2, 2) == 4"],
    "test_setup_code": "",
}
APPS_SCRIPT = {
    "question": "Echo.",
    "starter_code": "",
    "input_output": json.dumps({"inputs": ["1\n", ["2", "3"]], "outputs": ["1\n", ["2", "3"]]}),
    "solutions": json.dumps(["print(input())"]),
}
APPS_CALLS = {
    "problem_id": 7,
    "question": "Add.",
    "starter_code": "class Solution:\n    def add(self, a, b):\n",
    "input_output": {"fn_name": "add", "inputs": [[1, 2]], "outputs": [3]},
}


def write(path, *records):
    text = "".join(json.dumps(record) + "\n" for record in records).encode()
    pack = {".gz": gzip.compress, ".zst": zstandard.compress}.get(path.suffix, bytes)
    path.write_bytes(pack(text))
    return path


@pytest.mark.parametrize("name", ["p.jsonl", "p.jsonl.gz", "p.jsonl.zst"])
def test_formats_are_found_by_their_fields(tmp_path, name):
    problems = read_problems(write(tmp_path / name, HUMANEVAL, MBPP, APPS_SCRIPT, APPS_CALLS | {"family": "sum"}))
    assert [p.kind for p in problems] == ["humaneval", "mbpp", "apps", "apps"]
    assert [p.task_id for p in problems] == ["HumanEval/0", "11", "APPS/2", "7"]
    assert [p.family for p in problems] == [None, None, None, "sum"]
    assert [p.entry_point for p in problems] == ["half", None, None, "add"]


def test_two_frames_of_zstandard_are_one_file(tmp_path):
    path = tmp_path / "p.zst"
    path.write_bytes(b"".join(zstandard.compress(json.dumps(r).encode() + b"\n") for r in (HUMANEVAL, MBPP)))
    assert len(read_problems(path)) == 2


def test_humaneval_is_asked_as_it_is_and_tests_get_the_prompts_helpers():
    problem = problem_of(HUMANEVAL)
    assert problem.prompt == HUMANEVAL["prompt"] and problem.canonical == "    return x / 2\n"
    assert problem.source("    pass") == HUMANEVAL["prompt"] + "    pass"
    assert problem.tests == FunctionTests(
        HUMANEVAL["prompt"], HUMANEVAL["test"] + "\ncheck(half)\n", ("half",), together=False
    )


def test_mbpp_shows_three_solved_tasks_then_this_one():
    problem = problem_of(MBPP)
    assert problem.prompt.count("You are an expert Python programmer, and here is your task:") == 4
    assert problem.prompt.count("[BEGIN]\n") == 4 and problem.prompt.count("\n[DONE]\n") == 3
    assert problem.prompt.endswith("Write a function to add. Your code should pass these tests:\n\n"
                                   "assert math.isclose(add(1, 2), 3)\nassert add(2, 2) == 4\n[BEGIN]\n")  # fmt: skip
    assert "\r" not in problem.prompt and problem.source("x") == "x" and problem.stops == ("[DONE]",)


def test_mbpp_tests_may_lean_on_the_imports_of_the_solution():
    tests = problem_of(MBPP).tests
    assert tests.prelude == "import math" and tests.remote == ("add",) and not tests.together


@pytest.mark.parametrize(
    ("code", "setup", "test", "together"),
    [
        ("def f(x): return x", "", "assert f(1) == 1", False),
        ("def f(x): return x", "", "assert f(str) == str", False),
        ("def f(x): return x\ndef g(x): return x", "", "assert f(g(1)) == 1", False),
        ("def f(x): return x", "data = [1]", "assert f(data) == data", False),
        ("def f(x): return x", "", "assert list(map(f, [1])) == [1]", False),
        ("def f(x): return x", "", "assert all(f(i) == i for i in range(3))", False),
        ("class Pair:\n  pass\ndef f(x): return x", "", "assert f(Pair())", True),
        ("LIMIT = 3\ndef f(x): return x", "", "assert f(LIMIT) == 3", True),
        ("LIMIT: int = 3\ndef f(x): return x", "", "assert f(LIMIT) == 3", True),
        ("def f(x): return x", "class Node: pass", "assert f(Node())", True),
        ("def f(g): return g(1)", "", "assert f(lambda x: x) == 1", True),
        ("def f(g): return g(1)", "", "assert f(g=lambda x: x) == 1", True),
        ("def f(g): return g(1)", "def own(x): return x", "assert f(own) == 1", True),
        ("def f(g): return g(1)\ndef g(x): return x", "", "assert f(g) == 1", True),
        ("def f(x): return sum(x)", "", "assert f(x for x in [1, 2]) == 3", True),
        ("def f(x): return sum(x)", "", "assert f([x for x in [1, 2]]) == 3", False),
        ("def f(x): return x", "def own(x): return x", "assert f(own(1)) == 1", False),
        ("def f(x): return x", "", "assert f(sorted([1, 2], key=lambda x: -x)) == [2, 1]", False),
        ("def f(g): return g(1)", "def own(h):\n  return h(abs)", "assert own(f) == 1", False),
        ("def f(g): return g(1)", "def own(h):\n  return h(lambda x: x)", "assert own(f) == 1", True),
        ("def f(x): return x", "", "assert f.__name__ == 'f'", True),
        ("def f(x): print(x)", "import sys", "sys.stdout = open('x', 'w')\nf(1)", True),
        ("def f(x): print(x)", "import sys", "sys.stdout.write('x')\nassert f(1) is None", False),
        ("def f(x): print(x)", "from contextlib import redirect_stdout", "with redirect_stdout(None):\n    f(1)", True),
        ("def f(x): return x", "import unittest", "class T(unittest.TestCase):\n  def test(self): f(1)", False),
    ],
)
def test_tests_that_cannot_be_told_apart_from_the_program_are_found(code, setup, test, together):
    record = MBPP | {"code": code, "test_setup_code": setup, "test_list": [test]}
    assert problem_of(record).tests.together == together


def test_a_function_of_the_solution_hides_the_builtin_of_its_name():
    code = "def sum(a, b):\n    return max(a, b)"
    tests = problem_of(MBPP | {"code": code, "test_list": ["assert sum(1, max(2, 3)) == 3"]}).tests
    assert tests.remote == ("sum",) and not tests.together


@pytest.mark.parametrize(
    ("defined", "test", "together"),
    [
        ("class Node:\n    pass\n", "assert candidate(Node())", True),
        ("class Node:\n    pass\n", "assert candidate(1)", False),
        ("def own(x):\n    return x\n", "assert candidate(own)", True),
        ("", "assert candidate(lambda x: x)", True),
        ("class Bad(ValueError):\n    pass\nclass Worse(Bad):\n    pass\n", "candidate(Worse)", False),
    ],
)
def test_tests_that_use_a_class_of_the_prompt_or_hand_over_functions_run_together_with_the_program(
    defined, test, together
):
    record = HUMANEVAL | {"prompt": defined + HUMANEVAL["prompt"], "test": f"def check(candidate):\n    {test}\n"}
    assert problem_of(record).tests.together == together


def test_apps_programs_have_the_imports_of_its_tester():
    names: dict[str, object] = {}
    problem = problem_of(APPS_CALLS)
    source = problem.source("class Solution:\n    def add(self, a: List[int]) -> int:\n        pass")
    exec(f"{problem.imports}\n{source}", names)
    assert {"Solution", "deque", "gcd", "heappush", "lru_cache"} <= names.keys()


def test_apps_has_scripts_and_functions():
    script, calls = problem_of(APPS_SCRIPT), problem_of(APPS_CALLS)
    assert script.tests == Cases(None, ("1\n", "2\n3"), ("1\n", "2\n3")) and script.canonical == "print(input())"
    assert calls.tests == Cases("add", ([1, 2],), (3,)) and calls.canonical is None
    assert "Standard Input" in script.prompt and "Call-Based" in calls.prompt and "class Solution" in calls.prompt
    assert calls.prompt.endswith("ANSWER:\n")


@pytest.mark.parametrize(
    ("completion", "kept"),
    [
        ("    return x / 2\n", "    return x / 2\n"),
        ("    y = x\r    return y\r\rz = 1\r", "    y = x\r    return y\r"),
        ("    return x\r\n\r\nz = 1\r\n", "    return x\r\n"),
        ("    return x / 2\n\n\ndef other():\n    pass\n", "    return x / 2\n"),
        ("    return x / 2\n\nprint(half(2))", "    return x / 2\n"),
        ("    return x / 2\n\n\nx = 1\n", "    return x / 2\n"),
        ("    y = x\n    return y / (", "    y = x\n"),
        ("    s = 'a\x0cb\u2028c'\n    return s\ny = 1", "    s = 'a\x0cb\u2028c'\n    return s\n"),
        ("    return (", "    return ("),
        ("    if x:\n        return 1\n    # no\n    return 2", "    if x:\n        return 1\n    # no\n    return 2"),
        ("", ""),
    ],
)  # fmt: skip
def test_a_humaneval_completion_ends_with_its_function(completion, kept):
    assert truncate(problem_of(HUMANEVAL), completion) == kept


def test_other_completions_end_at_their_stops():
    assert truncate(problem_of(MBPP), "def add(a, b):\n  return a\n[DONE]\n\nYou") == "def add(a, b):\n  return a\n"
    assert truncate(problem_of(APPS_SCRIPT), "print(1)\nQUESTION:\n") == "print(1)"


@pytest.mark.parametrize(
    ("records", "message"),
    [
        ([{"a": 1}], "line 1: unknown format with the fields a; a problem has those of humaneval: task_id, prompt"),
        ([HUMANEVAL, {"task_id": 1, "test": ""}], "line 2: a record of humaneval lacks prompt, entry_point"),
        ([{"question": "", "starter_code": ""}], "line 1: a record of apps lacks input_output"),
        ([{k: v for k, v in MBPP.items() if k != "code"}], "line 1: a record of mbpp lacks code"),
        ([{k: v for k, v in MBPP.items() if k != "text"}], "line 1: a record of mbpp lacks text"),
        ([MBPP, HUMANEVAL, MBPP], "line 3: a second record with task_id '11'"),
        ([HUMANEVAL | {"prompt": 3}], "line 1: prompt is '3'; it must be a text"),
        ([HUMANEVAL | {"entry_point": "a b"}], "line 1: entry_point is 'a b'"),
        ([HUMANEVAL | {"test": "def"}], "line 1: the tests are no Python"),
        ([MBPP | {"test_list": "assert"}], "line 1: test_list is 'assert'; it must be a list of texts"),
        ([APPS_CALLS | {"input_output": "{"}], "no problem that can be judged: line 1: input_output is no JSON"),
        ([APPS_CALLS | {"input_output": {"inputs": [], "outputs": []}}], "line 1: input_output has 0 inputs"),
        ([[1]], r"line 1 is '\[1\]'; every line must be a JSON object"),
        ([], "has no problems"),
    ],
)
def test_what_is_no_problem_is_named(tmp_path, records, message):
    with pytest.raises(UserError, match=message):
        read_problems(write(tmp_path / "p.jsonl", *records))


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("p.jsonl", b'{"task_id": "\xff"}', "line 1 is not UTF-8"),
        ("p.jsonl", b"{}\n{", "line 1: unknown format"),
        ("p.jsonl", b"{", "line 1 is not JSON"),
        ("p.jsonl.gz", gzip.compress(b"{}" * 99, mtime=0)[:-9], "cannot read .*p.jsonl.gz"),
        ("p.jsonl.gz", b"{}", "cannot read .*p.jsonl.gz"),
        ("p.jsonl.zst", zstandard.compress(b"{}" * 99)[:-4], "is truncated: it ends inside its compressed data"),
        ("p.jsonl.zst", b"{}", "cannot read .*p.jsonl.zst"),
        ("p.jsonl", None, "cannot read .*: no such file"),
    ],
)
def test_a_file_that_cannot_be_read_is_named(tmp_path, name, data, message):
    if data is not None:
        (tmp_path / name).write_bytes(data)
    with pytest.raises(UserError, match=message):
        read_problems(tmp_path / name)


def test_odd_code_in_a_file_neither_warns_nor_counts_as_broken():
    """Python warns about such code while it parses; to whoever reads the file the warning says nothing."""
    odd = r"'\d'"
    record = {**HUMANEVAL, "test": f"def check(candidate):\n    odd = lambda: {odd}\n    assert candidate(1) == 0.5\n"}
    record["prompt"] = f"import math\nodd = lambda: {odd}\n" + HUMANEVAL["prompt"]
    with warnings.catch_warnings(record=True, action="always") as caught:
        problem = problem_of(record)
    assert not caught and "odd" in problem.tests.prelude


SANITIZED = {
    "source_file": "x",
    "task_id": 11,
    "prompt": "Write a function to add.",
    "code": "def add(a, b):\n  return a + b",
    "test_imports": ["import math"],
    "test_list": ["assert math.isclose(add(1, 2), 3)"],
}


def test_sanitized_mbpp_has_a_prompt_and_imports():
    problem = problem_of(SANITIZED)
    assert problem.kind == "mbpp" and problem.prompt.endswith(
        "here is your task: Write a function to add. Your code should pass these tests:\n\n"
        "assert math.isclose(add(1, 2), 3)\n[BEGIN]\n"
    )
    assert problem.tests.program == "import math\n\nassert math.isclose(add(1, 2), 3)"
    assert problem.tests.remote == ("add",) and not problem.tests.together


def test_mbpp_plus_is_judged_by_its_test():
    problem = problem_of(SANITIZED | {"test_imports": [], "test": "for a in [1, 2]:\n    assert add(a, a) == 2 * a"})
    assert problem.kind == "mbpp" and "math.isclose" in problem.prompt and problem.tests.remote == ("add",)
    assert problem.tests.program == "for a in [1, 2]:\n    assert add(a, a) == 2 * a"


@pytest.mark.parametrize(
    ("record", "fault"),
    [
        (APPS_SCRIPT | {"input_output": ""}, "line 2: input_output is empty"),
        (APPS_SCRIPT | {"input_output": None}, "line 2: input_output is empty"),
        (APPS_SCRIPT | {"input_output": "{}"}, "line 2: input_output must have the lists"),
        (APPS_SCRIPT | {"input_output": "[1"}, "line 2: input_output is no JSON"),
        (APPS_SCRIPT | {"input_output": {"inputs": ["1"], "outputs": []}}, "line 2: input_output has 1 inputs and 0"),
        (APPS_SCRIPT | {"input_output": "[" * 1200 + "]" * 1200}, "line 2: maximum recursion depth exceeded"),
        (MBPP | {"test_list": []}, "line 2: test_list is empty"),
        (MBPP | {"test_list": ["assert"]}, "line 2: the tests are no Python"),
        (MBPP | {"test_list": ["\0"]}, "line 2: the tests are no Python"),
        (MBPP | {"test_list": ["-" * 200_000 + "1"]}, "line 2: the tests are no Python"),
        (HUMANEVAL | {"task_id": 1, "test": " \n"}, "line 2: test is empty"),
        (HUMANEVAL | {"task_id": 1, "plus_input": [[1]]}, "line 2: plus_input needs the tester of EvalPlus"),
    ],
)
def test_a_problem_without_tests_is_named_and_the_others_are_read(tmp_path, record, fault):
    problems = read_problems(write(tmp_path / "p.jsonl", HUMANEVAL, record, APPS_CALLS))
    assert [p.fault == "" for p in problems] == [True, False, True] and problems[1].fault.startswith(fault)
    assert [p.task_id for p in judgeable(problems)] == ["HumanEval/0", "7"]
    assert problems[1].task_id == str(record.get("task_id", "APPS/1"))


@pytest.mark.parametrize("name", ["p.jsonl", "p.jsonl.gz", "p.jsonl.zst"])
def test_byte_order_marks_line_ends_of_windows_and_blank_lines_do_not_matter(tmp_path, name):
    text = "\ufeff\r\n" + "".join("\ufeff" + json.dumps(record) + "\r\n \r\n" for record in (HUMANEVAL, MBPP))
    pack = {".gz": gzip.compress, ".zst": zstandard.compress}.get((tmp_path / name).suffix, bytes)
    (tmp_path / name).write_bytes(pack(text.encode()))
    assert read_problems(tmp_path / name) == [problem_of(HUMANEVAL), problem_of(MBPP)]


def test_byte_order_marks_inside_are_none_of_prompt_tests_and_program():
    marked = {name: f"\ufeff{HUMANEVAL[name]}" for name in ("prompt", "test", "canonical_solution")}
    assert problem_of(HUMANEVAL | marked) == problem_of(HUMANEVAL)
    assert problem_of(MBPP).source("\ufeffx = 1") == "x = 1"


def test_numbers_of_any_length_are_read(tmp_path):
    limit = sys.get_int_max_str_digits()
    digits = "1" + "0" * 5000
    tests = '{"fn_name": "add", "inputs": [[N, 1]], "outputs": [N]}'.replace("N", digits)
    [problem] = read_problems(write(tmp_path / "p.jsonl", APPS_CALLS | {"input_output": tests}))
    assert problem.tests.outputs == (10**5000,)
    line = json.dumps(APPS_CALLS).replace('"outputs": [3]', f'"outputs": [{digits}]')
    (tmp_path / "p.jsonl").write_text(line)
    assert read_problems(tmp_path / "p.jsonl")[0].tests.outputs == (10**5000,)
    [script] = read_problems(write(tmp_path / "p.jsonl", APPS_SCRIPT | {"input_output": tests.replace("fn_name", "x")}))
    assert script.tests.outputs == (digits,) and sys.get_int_max_str_digits() == limit


def test_scripts_may_have_inputs_and_outputs_without_quotes():
    given = {"inputs": [1, 2.5, [3, "a"], None, []], "outputs": [True, 0, [[1]], "", "x"]}
    tests = problem_of(APPS_SCRIPT | {"input_output": given}).tests
    assert tests == Cases(None, ("1", "2.5", "3\na", "", ""), ("True", "0", "[1]", "", "x"))


PLAIN = st.recursive(
    st.integers() | st.text("ab1-", max_size=3),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.integers(), inner, max_size=3)
        | st.dictionaries(st.text("ab", min_size=1, max_size=3), inner, max_size=3)
    ),
)


@given(PLAIN)
def test_keys_that_were_whole_numbers_are_so_again(value):
    assert with_whole_keys(json.loads(json.dumps(value))) == value


def test_keys_of_arguments_and_results_are_restored():
    given = {"fn_name": "f", "inputs": [[{"1": {"-2": "3"}}, "1"]], "outputs": [[{"10": 1, "x": 2}], {"0": 1}]}
    tests = problem_of(APPS_CALLS | {"input_output": given | {"inputs": given["inputs"] * 2}}).tests
    assert tests.inputs[0] == [{1: {-2: "3"}}, "1"] and tests.outputs == ([{"10": 1, "x": 2}], {0: 1})
    assert with_whole_keys({"01": 1}) == {"01": 1} and with_whole_keys({"٣": 1}) == {"٣": 1}


@given(st.lists(st.sampled_from(["x = 1", "y = 'a'", "s = '''", "'''", "\r", "\n", "\r\n", "\f", "# \u2028"])))
def test_a_program_with_any_line_ends_means_what_python_takes_it_for_in_a_file(pieces):
    """`compile` of a text ends lines where reading a file does."""
    text = "".join(pieces)
    seen = []
    for source in (text, text.replace("\r\n", "\n").replace("\r", "\n")):
        try:
            seen.append(ast.dump(ast.parse(source), include_attributes=True))
        except SyntaxError as error:
            seen.append(type(error))
    assert seen[0] == seen[1]


def test_optional_fields_may_be_null() -> None:
    assert problem_of(MBPP | {"test_setup_code": None}) == problem_of(MBPP)
    assert problem_of(APPS_SCRIPT | {"solutions": None}).canonical is None


@pytest.mark.parametrize("name", ["", None])
def test_an_empty_name_of_a_function_is_none(name: str | None) -> None:
    cases = json.dumps({"fn_name": name, "inputs": ["1"], "outputs": ["1"]})
    assert problem_of(APPS_SCRIPT | {"input_output": cases}).tests == Cases(None, ("1",), ("1",))


@pytest.mark.parametrize("solutions", ["print(1)", {"a": 1}, [1]])
def test_a_field_of_another_kind_is_named(solutions: object) -> None:
    with pytest.raises(ValueError, match="solutions is no list of texts"):
        problem_of(APPS_SCRIPT | {"solutions": solutions})

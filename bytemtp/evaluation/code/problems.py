"""Programming problems with tests, from the files that people have: HumanEval, MBPP and APPS as JSON lines.

The format of a record is found by its fields.  How each is asked and judged:

- HumanEval: the prompt as it is.  The program is prompt + completion; then the test and `check(entry_point)` run.
- MBPP: three solved tasks (2, 3 and 4 of the data set), then this one with its tests, up to [BEGIN].  The program is
  the completion; then test_setup_code and test_list run.
- APPS: the question and the starter code.  The program is the completion; it is a script that is fed standard input, or
  defines the function that input_output names (perhaps in a class Solution).  Both may use what APPS_IMPORTS imports,
  and a script may end by a `return`: the solutions of the data set count on it.

Try:  python -c "from bytemtp.evaluation.code.problems import *; print(read_problems(Path('mbpp.jsonl'))[0].prompt)"
"""

import ast
import json
import re
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from bytemtp.common.errors import UserError
from bytemtp.data.compression import decompress, format_of
from bytemtp.data.sources import READ_BYTES, Damaged, Source
from bytemtp.evaluation.code.apart import FunctionTests, function_tests, parsed, parses

Kind = Literal["humaneval", "mbpp", "apps"]
Record = dict[str, Any]

FIELDS: dict[Kind, tuple[str, ...]] = {
    "humaneval": ("task_id", "prompt", "entry_point", "test"),
    "mbpp": ("task_id", "text", "code", "test_list", "test_setup_code"),
    "apps": ("question", "input_output", "starter_code"),
}
"""Fields that a record has to have."""
STOPS: dict[Kind, tuple[str, ...]] = {
    "humaneval": ("\nclass", "\ndef", "\n#", "\n@", "\nif", "\nprint", "\nassert", "\nimport ", "\nfrom ", "\n```"),
    "mbpp": ("[DONE]",),
    "apps": ("\nQUESTION:", "\nANSWER:"),
}
APPS_IMPORTS = (
    "import collections, fractions, functools, heapq, itertools, math, random, sys, time\n"
    "from collections import ChainMap, Counter, OrderedDict, defaultdict, deque\n"
    "from functools import lru_cache\n"
    "from heapq import *\n"
    "from itertools import accumulate, combinations, permutations, product\n"
    "from math import ceil, cos, exp, fabs, floor, gcd, log, log2, sin, sqrt, tan\n"
    "from typing import List, Tuple\n"
)
"""What the published tester of APPS puts in front of a program, but for numpy.  It runs first, by itself, because a
program may begin with imports from `__future__`."""
MBPP_QUESTION = (
    "You are an expert Python programmer, and here is your task: {text} Your code should pass these tests:\n\n"
    "{tests}\n[BEGIN]\n"
)
MBPP_SHOTS = json.loads(Path(__file__).with_name("mbpp_shots.json").read_text("utf-8"))
"""Tasks 2, 3 and 4 of MBPP (CC BY 4.0), which every MBPP prompt shows solved."""


@dataclass(frozen=True)
class Cases:
    """Inputs and the outputs expected: arguments and result of `function`, or texts if there is none."""

    function: str | None
    inputs: tuple[Any, ...]
    outputs: tuple[Any, ...]


@dataclass(frozen=True)
class Problem:
    """One record of a problem file."""

    task_id: str
    kind: Kind
    prompt: str
    """the text that a base model continues"""
    stops: tuple[str, ...]
    """strings before which a completion ends"""
    canonical: str | None
    """a completion known to be right, where the file has one"""
    family: str | None
    """what the optional field of this name says"""
    entry_point: str | None
    """the function that is asked for, where the file names it"""
    tests: FunctionTests | Cases

    @property
    def imports(self) -> str:
        """What runs before the program, in its module."""
        return APPS_IMPORTS if self.kind == "apps" else ""

    def source(self, completion: str) -> str:
        """The program that a completion makes."""
        return self.prompt + completion if self.kind == "humaneval" else completion


def read_problems(path: Path) -> list[Problem]:
    """The problems of a JSONL file, plain, .gz or .zst.  UserError names the line and what is wrong with it."""
    problems: dict[str, Problem] = {}
    for number, record in records(path):
        place = f"{path}, line {number}"
        try:
            problem = problem_of(record, number)
        except (TypeError, ValueError, KeyError, AttributeError) as error:
            raise UserError(f"{place}: {error}") from None
        if problem.task_id in problems:
            raise UserError(f"{place}: a second record with task_id {problem.task_id!r}; each must have its own")
        problems[problem.task_id] = problem
    if not problems:
        raise UserError(f"{path} has no problems")
    return list(problems.values())


def records(path: Path) -> Iterator[tuple[int, Record]]:
    """The objects of a JSONL file with the numbers of their lines.  UserError for what is none."""
    for number, line in enumerate(_read(path).split(b"\n"), 1):
        if not line.strip():
            continue
        try:
            record = json.loads(line.decode("utf-8"))
        except UnicodeDecodeError as error:
            raise UserError(f"{path}, line {number} is not UTF-8: {error}") from None
        except (ValueError, RecursionError) as error:
            raise UserError(f"{path}, line {number} is not JSON: {error}") from None
        if not isinstance(record, dict):
            raise UserError(f"{path}, line {number} is {str(record)[:40]!r}; every line must be a JSON object")
        yield number, record


def _read(path: Path) -> bytes:
    """The bytes of a file, decompressed as its ending says."""
    try:
        with closing(decompress(Source(str(path), 0).open(), format_of(path.name).compression)) as file:
            return b"".join(iter(lambda: file.read(READ_BYTES), b""))
    except Damaged as damage:
        raise UserError(f"cannot read {path}: {damage.reason}") from None


def problem_of(record: Record, number: int = 1) -> Problem:
    """ValueError, TypeError or KeyError for a record that is none; `number` names an APPS record without an id."""
    kind = kind_of(record)
    missing = [name for name in FIELDS[kind] if name not in record]
    if missing:
        raise ValueError(f"a record of {kind} lacks {', '.join(missing)}")
    prompt, canonical, entry_point, tests = {"humaneval": _humaneval, "mbpp": _mbpp, "apps": _apps}[kind](record)
    family = record.get("family")
    return Problem(
        task_id=str(record.get("task_id", record.get("problem_id", f"APPS/{number - 1}"))),
        kind=kind,
        prompt=prompt,
        stops=STOPS[kind],
        canonical=canonical,
        family=None if family is None else str(family),
        entry_point=entry_point,
        tests=tests,
    )


def kind_of(record: Record) -> Kind:
    """The format that a record has most fields of.  ValueError if it has none of their own fields."""
    own: dict[Kind, tuple[str, ...]] = {
        "humaneval": ("entry_point", "test"),
        "mbpp": ("test_list", "test_setup_code"),
        "apps": ("question", "input_output", "starter_code"),
    }
    kind = max(own, key=lambda kind: sum(name in record for name in own[kind]))
    if not any(name in record for name in own[kind]):
        formats = "; ".join(f"{kind}: {', '.join(names)}" for kind, names in FIELDS.items())
        raise ValueError(f"unknown format with the fields {', '.join(record)}; a problem has those of {formats}")
    return kind


Parts = tuple[str, str | None, str | None, FunctionTests | Cases]
"""Prompt, canonical completion, entry point, tests."""


def _humaneval(record: Record) -> Parts:
    prompt, entry_point = _text(record, "prompt"), _text(record, "entry_point")
    canonical = _text(record, "canonical_solution") if record.get("canonical_solution") is not None else None
    if not entry_point.isidentifier():
        raise ValueError(f"entry_point is {entry_point!r}; it must be the name of a function")
    program = f"{_text(record, 'test')}\ncheck({entry_point})\n"
    prelude = next((text for text in (prompt, f"{prompt}\n    pass\n") if parses(text)), "")
    solution = prompt + (canonical or "\n    pass\n")
    return (
        prompt,
        canonical,
        entry_point,
        function_tests(prelude, program, solution, {entry_point}, solved=canonical is not None),
    )


def _mbpp(record: Record) -> Parts:
    code, tests = _text(record, "code").replace("\r\n", "\n"), record["test_list"]
    if not (isinstance(tests, list) and all(isinstance(test, str) for test in tests)):
        raise TypeError(f"test_list is {str(tests)[:40]!r}; it must be a list of texts")
    program = "\n".join([_text(record, "test_setup_code"), *tests]).replace("\r\n", "\n").strip("\n")
    tree = parsed(code) if parses(code) else ast.Module([], [])
    imports = [ast.unparse(node) for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
    prompt = "".join([*(f"{_mbpp_question(shot)}{shot['code']}\n[DONE]\n" for shot in MBPP_SHOTS)])
    return (
        prompt + _mbpp_question(record),
        code,
        None,
        function_tests("\n".join(imports), program, code, set()),
    )


def _mbpp_question(record: Record) -> str:
    return MBPP_QUESTION.format(text=_text(record, "text"), tests="\n".join(record["test_list"])).replace("\r\n", "\n")


def _apps(record: Record) -> Parts:
    cases = record["input_output"]
    cases = json.loads(cases) if isinstance(cases, str) else cases
    if not (
        isinstance(cases, dict) and isinstance(cases.get("inputs"), list) and isinstance(cases.get("outputs"), list)
    ):
        raise TypeError("input_output must have the lists inputs and outputs")
    inputs, outputs, function = cases["inputs"], cases["outputs"], cases.get("fn_name")
    if len(inputs) != len(outputs) or not inputs:
        raise ValueError(
            f"input_output has {len(inputs)} inputs and {len(outputs)} outputs; it must have as many, and some"
        )
    starter = record["starter_code"] or ""
    how = "\nUse Call-Based format" if function else "\nUse Standard Input format"
    prompt = f"\nQUESTION:\n{_text(record, 'question')}\n{starter}{how}\nANSWER:\n"
    solutions = record.get("solutions")
    solutions = json.loads(solutions) if isinstance(solutions, str) and solutions else solutions
    if function is None:
        inputs, outputs = ([_lines(text) for text in texts] for texts in (inputs, outputs))
    return prompt, solutions[0] if solutions else None, function, Cases(function, tuple(inputs), tuple(outputs))


def _lines(text: str | list[str]) -> str:
    """APPS writes some inputs and outputs as lists of lines."""
    return text if isinstance(text, str) else "\n".join(map(str, text))


def _text(record: Record, name: str) -> str:
    if not isinstance(record[name], str):
        raise TypeError(f"{name} is {str(record[name])[:40]!r}; it must be a text")
    return str(record[name])


def truncate(problem: Problem, completion: str) -> str:
    """What of a base model's output is the solution.

    1. It ends before the first of the problem's stops.
    2. HumanEval: it ends with the last line of the function that was asked for, if the program so far parses.  If it
       does not, lines are dropped from its end until it does: a limit of length has cut the last statement.
    """
    cut = min((at for stop in problem.stops if (at := completion.find(stop)) >= 0), default=len(completion))
    completion = completion[:cut]
    if problem.kind != "humaneval":
        return completion
    lines = completion.splitlines(keepends=True)
    for count in range(len(lines), 0, -1):
        part = "".join(lines[:count])
        if parses(problem.source(part)):
            return part[: _end_of_function(problem, part)]
    return completion


def _end_of_function(problem: Problem, completion: str) -> int:
    """Characters of a completion up to the end of the function that was asked for; all, if it is not there."""
    source = problem.source(completion)
    functions = [node for node in parsed(source).body if isinstance(node, ast.FunctionDef)]
    ends = [node.end_lineno for node in functions if node.name == problem.entry_point]
    if not ends or ends[0] is None:
        return len(completion)
    lines = re.split(r"(?<=\n)", source)  # as Python counts lines, unlike str.splitlines
    return max(0, sum(map(len, lines[: ends[0]])) - len(problem.prompt))

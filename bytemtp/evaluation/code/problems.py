"""Programming problems with tests, from the files that people have: HumanEval, MBPP and APPS as JSON lines.

The format of a record is found by its fields.  How each is asked and judged:

- HumanEval, also HumanEval+: the prompt as it is.  The program is prompt + completion; then the test and
  `check(entry_point)` run.
- MBPP, also sanitized and MBPP+: three solved tasks (2, 3 and 4 of the data set), then this one with its tests, up to
  [BEGIN].  The program is the completion; then test_setup_code or test_imports and the test_list run, or the `test`
  that MBPP+ has in their place.
- APPS: the question and the starter code.  The program is the completion; it is a script that is fed standard input, or
  defines the function that input_output names (perhaps in a class Solution).  Both may use what APPS_IMPORTS imports,
  and a script may end by a `return`: the solutions of the data set count on it.

A record that is a problem but whose tests are missing or broken has a `fault`: it is named, and the others are judged.

Try:  python -c "from bytemtp.evaluation.code.problems import *; print(read_problems(Path('mbpp.jsonl'))[0].prompt)"
"""

import ast
import codecs
import json
import re
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from bytemtp.common.errors import UserError
from bytemtp.common.jsonl import any_digits
from bytemtp.data.compression import decompress, format_of
from bytemtp.data.sources import READ_BYTES, Damaged, Source
from bytemtp.evaluation.code.apart import FunctionTests, Unjudgeable, function_tests, parsed, parses

Kind = Literal["humaneval", "mbpp", "apps"]
Record = dict[str, Any]

FIELDS: dict[Kind, tuple[str, ...]] = {
    "humaneval": ("task_id", "prompt", "entry_point", "test"),
    "mbpp": ("task_id", "text", "code", "test_list"),
    "apps": ("question", "input_output", "starter_code"),
}
"""Fields that a record has to have."""
OWN: dict[Kind, tuple[str, ...]] = {
    "humaneval": ("entry_point", "test"),
    "mbpp": ("code", "test_list", "test_setup_code", "test_imports"),
    "apps": ("question", "input_output", "starter_code"),
}
"""Fields by which a record is told from those of other formats."""
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
WHOLE = re.compile("0|-?[1-9][0-9]*")
"""How JSON writes a whole number."""
LINE_ENDS = re.compile(r"(?<=\n)|(?<=\r)(?!\n)")
"""Where Python begins a new line; `str.splitlines` knows other places, too."""


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
    fault: str = ""
    """why it cannot be judged; it has no tests then, or they do not run here"""

    @property
    def imports(self) -> str:
        """What runs before the program, in its module."""
        return APPS_IMPORTS if self.kind == "apps" else ""

    def source(self, completion: str, *, whole: bool = False) -> str:
        """The program that a completion makes, without a byte order mark.  whole: it is one already."""
        source = self.prompt + completion if self.kind == "humaneval" and not whole else completion
        return source.removeprefix("\ufeff")


def read_problems(path: Path) -> list[Problem]:
    """The problems of a JSONL file, plain, .gz or .zst; those that cannot be judged have a `fault`.

    UserError names the line and what is wrong with it; also if no problem can be judged.
    """
    problems: dict[str, Problem] = {}
    for number, record in records(path):
        place = f"{path}, line {number}"
        try:
            problem = problem_of(record, number)
        except (Unjudgeable, RecursionError) as fault:
            problem = faulty(record, number, str(fault))
        except (TypeError, ValueError, KeyError, AttributeError) as error:
            raise UserError(f"{place}: {error}") from None
        if problem.task_id in problems:
            raise UserError(f"{place}: a second record with task_id {problem.task_id!r}; each must have its own")
        problems[problem.task_id] = problem
    if not problems:
        raise UserError(f"{path} has no problems")
    if all(problem.fault for problem in problems.values()):
        raise UserError(f"{path} has no problem that can be judged: {next(iter(problems.values())).fault}")
    return list(problems.values())


def judgeable(problems: Sequence[Problem]) -> list[Problem]:
    """Those without a fault."""
    return [problem for problem in problems if not problem.fault]


def records(path: Path) -> Iterator[tuple[int, Record]]:
    """The objects of a JSONL file with the numbers of their lines.  UserError for what is none."""
    for number, line in enumerate(_read(path).split(b"\n"), 1):
        line = line.removeprefix(codecs.BOM_UTF8)  # files that were joined have several
        if not line.strip():
            continue
        try:
            with any_digits():
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
    """ValueError, TypeError or KeyError for a record that is none, Unjudgeable for one with no tests or broken ones.

    number: names an APPS record without an id.
    """
    kind = kind_of(record)
    if kind == "mbpp" and "prompt" in record:
        record = {"text": record["prompt"]} | record
    missing = [name for name in FIELDS[kind] if name not in record]
    if missing:
        raise ValueError(f"a record of {kind} lacks {', '.join(missing)}")
    with any_digits():
        prompt, canonical, entry_point, tests = {"humaneval": _humaneval, "mbpp": _mbpp, "apps": _apps}[kind](record)
    family = record.get("family")
    return Problem(
        task_id=_task_id(record, number),
        kind=kind,
        prompt=prompt,
        stops=STOPS[kind],
        canonical=canonical,
        family=None if family is None else str(family),
        entry_point=entry_point,
        tests=tests,
    )


def faulty(record: Record, number: int, fault: str) -> Problem:
    """A problem that cannot be judged, nor asked."""
    name, kind = _task_id(record, number), kind_of(record)
    return Problem(name, kind, "", (), None, None, None, Cases(None, (), ()), f"line {number}: {fault}")


def _task_id(record: Record, number: int) -> str:
    return str(record.get("task_id", record.get("problem_id", f"APPS/{number - 1}")))


def kind_of(record: Record) -> Kind:
    """The format that a record has most fields of.  ValueError if it has none of their own fields."""
    kind = max(OWN, key=lambda kind: sum(name in record for name in OWN[kind]))
    if not any(name in record for name in OWN[kind]):
        formats = "; ".join(f"{kind}: {', '.join(names)}" for kind, names in FIELDS.items())
        raise ValueError(f"unknown format with the fields {', '.join(record)}; a problem has those of {formats}")
    return kind


Parts = tuple[str, str | None, str | None, FunctionTests | Cases]
"""Prompt, canonical completion, entry point, tests."""


def _humaneval(record: Record) -> Parts:
    prompt, entry_point, test = (_text(record, name) for name in ("prompt", "entry_point", "test"))
    canonical = _text(record, "canonical_solution") if record.get("canonical_solution") is not None else None
    if not entry_point.isidentifier():
        raise ValueError(f"entry_point is {entry_point!r}; it must be the name of a function")
    if not test.strip():
        raise Unjudgeable("test is empty")
    if "plus_input" in record:  # its `test` is HumanEval's
        raise Unjudgeable("plus_input needs the tester of EvalPlus; the data set evalplus/humanevalplus has it in test")
    program = f"{test}\ncheck({entry_point})\n"
    prelude = next((text for text in (prompt, f"{prompt}\n    pass\n") if parses(text)), "")
    solution = prompt + (canonical or "\n    pass\n")
    return (
        prompt,
        canonical,
        entry_point,
        function_tests(prelude, program, solution, {entry_point}, solved=canonical is not None),
    )


def _mbpp(record: Record) -> Parts:
    code = _text(record, "code").replace("\r\n", "\n")
    # MBPP+ has the tests of the list and many others in `test`.
    tests = [_text(record, "test")] if record.get("test") else _texts(record, "test_list")
    if not "".join(tests).strip():
        raise Unjudgeable("test_list is empty")
    setup = _text(record, "test_setup_code") if record.get("test_setup_code") else ""
    before = [*_texts(record, "test_imports"), setup]
    program = "\n".join([*before, *tests]).replace("\r\n", "\n").strip("\n")
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
    tests = "\n".join(_texts(record, "test_list"))
    return MBPP_QUESTION.format(text=_text(record, "text"), tests=tests).replace("\r\n", "\n")


def _apps(record: Record) -> Parts:
    inputs, outputs, function = _cases(record["input_output"])
    starter = record["starter_code"] or ""
    how = "\nUse Call-Based format" if function else "\nUse Standard Input format"
    prompt = f"\nQUESTION:\n{_text(record, 'question')}\n{starter}{how}\nANSWER:\n"
    solution = _first(record.get("solutions"))
    if function is None:
        inputs, outputs = ([_lines(text) for text in texts] for texts in (inputs, outputs))
    else:
        inputs, outputs = with_whole_keys(inputs), with_whole_keys(outputs)
    return prompt, solution, function, Cases(function, tuple(inputs), tuple(outputs))


def _first(solutions: Any) -> str | None:
    """Of a list of texts, which may be written as JSON.  ValueError if it is something else."""
    try:
        solutions = json.loads(solutions) if isinstance(solutions, str) and solutions else solutions
    except ValueError:
        raise ValueError("solutions is no list of texts in JSON") from None
    if not solutions:
        return None
    if not isinstance(solutions, list) or not isinstance(solutions[0], str):
        raise ValueError("solutions is no list of texts")
    return solutions[0]


def _cases(given: Any) -> tuple[list[Any], list[Any], str | None]:
    """Inputs, outputs and the function's name of an `input_output`.  Unjudgeable if there are none."""
    given = given.strip() if isinstance(given, str) else given
    if not given:
        raise Unjudgeable("input_output is empty")
    try:
        cases = json.loads(given) if isinstance(given, str) else given
    except ValueError as error:
        raise Unjudgeable(f"input_output is no JSON: {error}") from None
    inputs, outputs = (cases.get(name) if isinstance(cases, dict) else None for name in ("inputs", "outputs"))
    if not (isinstance(inputs, list) and isinstance(outputs, list)):
        raise Unjudgeable("input_output must have the lists inputs and outputs")
    if len(inputs) != len(outputs) or not inputs:
        raise Unjudgeable(
            f"input_output has {len(inputs)} inputs and {len(outputs)} outputs; it must have as many, and some"
        )
    return inputs, outputs, cases.get("fn_name") or None


def _lines(text: Any) -> str:
    """APPS writes some inputs and outputs as lists of lines, and some that are numbers without quotes."""
    if isinstance(text, list):
        return "\n".join(map(str, text))
    return "" if text is None else str(text)


def with_whole_keys(value: Any) -> Any:
    """JSON has made texts of whole numbers that were keys of a dictionary; as in the tester of APPS they are numbers
    again where all keys of a dictionary look like them."""
    if isinstance(value, list):
        return [with_whole_keys(item) for item in value]
    if not isinstance(value, dict):
        return value
    whole = all(WHOLE.fullmatch(key) for key in value)
    return {int(key) if whole else key: with_whole_keys(item) for key, item in value.items()}


def _text(record: Record, name: str) -> str:
    if not isinstance(record[name], str):
        raise TypeError(f"{name} is {str(record[name])[:40]!r}; it must be a text")
    return record[name].removeprefix("\ufeff")


def _texts(record: Record, name: str) -> list[str]:
    """A list that may be missing."""
    texts = [] if record.get(name) is None else record[name]
    if not (isinstance(texts, list) and all(isinstance(text, str) for text in texts)):
        raise TypeError(f"{name} is {str(texts)[:40]!r}; it must be a list of texts")
    return texts


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
    lines = [line for line in LINE_ENDS.split(completion) if line]
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
    return max(0, sum(map(len, LINE_ENDS.split(source)[: ends[0]])) - len(problem.prompt))

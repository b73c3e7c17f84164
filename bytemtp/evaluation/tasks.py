"""Multiple-choice tasks from files: of a form of our own, and of those in which benchmarks are published.

The form of a record is found by its fields: the first of FORMS whose fields are all there counts, GENERIC if none does.
Contexts and choices of the published forms are those of EleutherAI's lm-evaluation-harness (lm_eval/tasks: arc,
super_glue/copa, hellaswag, piqa, siqa, mmlu) without examples; as there, a blank stands between the two.

Try:  python -c "from bytemtp.evaluation.tasks import *; print(read_tasks(Path('ARC-Easy-Test.jsonl'))[0])"
"""

import csv
import io
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from bytemtp.common.checks import shown
from bytemtp.common.errors import UserError
from bytemtp.common.files import read_input
from bytemtp.evaluation.code.problems import Record, records

R = TypeVar("R")
T = TypeVar("T")

NAMES: dict[str, tuple[str, ...]] = {
    "context": ("context", "query", "ctx", "question", "prompt"),
    "choices": ("choices", "endings", "options"),
    "answer": ("answer", "gold", "label"),
}
"""Names under which files of the generic form have each field; the first that is there counts."""
LETTERS = ("A", "B", "C", "D")
COLUMNS = ("question", *LETTERS, "answer")
"""Of MMLU's CSV files, which do not name them."""
CONNECTIVES = {"cause": "because", "effect": "therefore"}
"""What COPA's premise is joined with, by what is asked for."""
MARKS = re.compile(r"\[.*?\]")
"""In HellaSwag, left over from WikiHow's headings."""
KINDS: dict[type, str] = {str: "a text", list: "a list", dict: "an object"}


@dataclass(frozen=True)
class Task:
    """A question with its choices."""

    context: bytes
    choices: tuple[bytes, ...]
    """bytes that may follow the context"""
    answer: int
    """number of the right one, from 0"""
    between: str = ""
    """text that each choice begins with and that the file's own does not"""

    @property
    def byte_counts(self) -> list[int]:
        """Of each choice."""
        return list(map(len, self.choices))

    @property
    def character_counts(self) -> list[int]:
        """Of each choice as it is in the file; a byte that is no UTF-8 is one."""
        return [len(choice.decode("utf-8", "surrogateescape")) - len(self.between) for choice in self.choices]


def read_tasks(path: Path, between: str | None = None, labels: Path | None = None) -> list[Task]:
    """Tasks of a file: JSON lines, plain, .gz or .zst, or MMLU's .csv.

    between: see `task_of`.  labels: file of the right answers, a line each, where they are not in the records.
    UserError names the line and what is wrong with it.
    """
    numbered = list(read_csv(path) if path.suffix == ".csv" else records(path))
    answers: Sequence[str | None] = [None] * len(numbered) if labels is None else read_labels(labels)
    if len(answers) != len(numbered):
        raise UserError(f"{labels} has {len(answers)} labels and {path} {len(numbered)} tasks; each task needs one")
    placed = ((f"line {number}", (record, label)) for (number, record), label in zip(numbered, answers, strict=True))
    return parsed(path, "tasks", placed, lambda both: task_of(both[0], between, both[1]))


def parsed(path: Path, what: str, placed: Iterable[tuple[str, R]], parse: Callable[[R], T]) -> list[T]:
    """The records of a file, each of which comes with where it is, by `parse`.

    what: are they, in the plural.  UserError where `parse` has a ValueError, and if there is no record.
    """
    found = []
    for place, record in placed:
        try:
            found.append(parse(record))
        except ValueError as error:
            raise UserError(f"{path}, {place}: {error}") from None
    if not found:
        raise UserError(f"{path} has no {what}")
    return found


def read_csv(path: Path) -> Iterator[tuple[int, Record]]:
    """Rows by COLUMNS, each with the number of its last line.  UserError for one with more or fewer columns."""
    reader = csv.reader(io.StringIO(read_text(path), newline=""))  # csv itself ends lines: some are inside quotes
    try:
        for row in filter(None, reader):
            if len(row) != len(COLUMNS):
                wanted = f"{len(COLUMNS)}: {', '.join(COLUMNS)}"
                raise UserError(f"{path}, line {reader.line_num} has {len(row)} columns; it must have {wanted}")
            yield reader.line_num, dict(zip(COLUMNS, row, strict=True))
    except csv.Error as error:
        raise UserError(f"{path}, line {reader.line_num} is not CSV: {error}") from None


def read_labels(path: Path) -> list[str]:
    """The lines of a file but blank ones."""
    return [line.strip() for line in read_text(path).splitlines() if line.strip()]


def read_text(path: Path) -> str:
    """UserError for a file that cannot be read or is not UTF-8."""
    try:
        return read_input(path).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8: {error}") from None


def task_of(record: Record, between: str | None = None, label: str | None = None) -> Task:
    """The task of a record of any form.

    between: put between context and choice, None for what the form has there.  label: the answer, where it is not in
    the record.  ValueError if a field is missing or of the wrong kind, or if the answer is none of the choices.
    """
    form = next((form for form in FORMS if record.keys() >= set(form.fields)), GENERIC)
    context, choices, names = form.parts(record)
    if len(choices) < 2 or not all(choices):
        raise ValueError(f"the choices are {choices!r}; they must be two or more texts, none of them empty")
    right = _right(record, form.answers, label)
    if str(right) not in names:
        raise ValueError(f"the answer is {right!r}; it must be one of {', '.join(names)}")
    between = form.between if between is None else between
    following = tuple((between + choice).encode() for choice in choices)
    return Task(context.encode(), following, names.index(str(right)), between)


def _right(record: Record, fields: Sequence[str], label: str | None) -> Any:
    """The answer that a record has, or else `label`."""
    found = [record[name] for name in fields if name in record]
    if label is not None and found:
        raise ValueError(f"it has an answer, {shown(found[0])}, so a file of labels must not be given")
    if label is None and not found:
        raise ValueError(f"{_lacks(record, fields)}; a file of labels is named with --labels")
    return found[0] if label is None else label


def _lacks(record: Record, fields: Sequence[str]) -> str:
    return f"no field {' or '.join(map(repr, fields))}; it has {', '.join(map(repr, record))}"


def get(record: Any, name: str, kind: type[T]) -> T:
    """A field of a record.  ValueError if it is not there, or of another kind than one of KINDS."""
    if not isinstance(record, dict) or name not in record:
        raise ValueError(f"no field {name!r} in {shown(record)}")
    value = record[name]
    if not isinstance(value, kind):
        raise ValueError(f"{name!r} is {shown(value)}; it must be {KINDS[kind]}")
    return value


def get_texts(record: Any, name: str) -> list[str]:
    """A field that is a list of texts.  ValueError for another."""
    texts = get(record, name, list)
    if not all(isinstance(text, str) for text in texts):
        raise ValueError(f"{name!r} is {shown(texts)}; it must be a list of texts")
    return texts


Parts = tuple[str, list[str], list[str]]
"""Context, choices, and by which name the file calls each choice in its answers."""


def _numbers(count: int, first: int = 0) -> list[str]:
    """Names of choices that are called by their numbers."""
    return [str(number) for number in range(first, first + count)]


def _generic(record: Record) -> Parts:
    """Context and choices as they are; answers are numbers from 0."""
    context = get(record, _known(record, "context"), str)
    choices = get_texts(record, _known(record, "choices"))
    return context, choices, _numbers(len(choices))


def _known(record: Record, what: str) -> str:
    """The name under which a record of the generic form has a field."""
    for name in NAMES[what]:
        if name in record:
            return name
    raise ValueError(_lacks(record, NAMES[what]))


def _arc(record: Record) -> Parts:
    """ARC: "Question: ...", on the next line "Answer:", and the text of a choice; answers are the file's own labels.

    As published the choices are a list in the question, at Hugging Face two lists beside it.
    """
    if isinstance(record["question"], dict):
        stem, rows = get(record["question"], "stem", str), get(record["question"], "choices", list)
        texts, names = ([get(row, name, str) for row in rows] for name in ("text", "label"))
    else:
        stem, choices = get(record, "question", str), get(record, "choices", dict)
        texts, names = get_texts(choices, "text"), get_texts(choices, "label")
    if len(texts) != len(names):
        raise ValueError(f"'choices' has {len(texts)} texts and {len(names)} labels")
    return f"Question: {stem}\nAnswer:", texts, names


def _copa(record: Record) -> Parts:
    """COPA: the premise with "because" or "therefore" for its full stop, and a choice as it is, with its capital."""
    asked = get(record, "question", str)
    if asked not in CONNECTIVES:
        raise ValueError(f"'question' is {asked!r}; it must be one of {', '.join(CONNECTIVES)}")
    premise = get(record, "premise", str).strip().removesuffix(".")
    return f"{premise} {CONNECTIVES[asked]}", _choices(record, "choice1", "choice2"), _numbers(2)


def _hellaswag(record: Record) -> Parts:
    """HellaSwag: "Activity: context" and an ending, all without MARKS.  The sentence to be ended, which some records
    have by itself in ctx_b, begins with a capital."""
    begun = get({"ctx_b": ""} | record, "ctx_b", str)
    context = get(record, "ctx", str).removesuffix(begun) + begun.capitalize()
    endings = [_unmarked(ending) for ending in get_texts(record, "endings")]
    return _unmarked(f"{get(record, 'activity_label', str)}: {context}"), endings, _numbers(len(endings))


def _unmarked(text: str) -> str:
    return MARKS.sub("", text.strip().replace(" [title]", ". ")).replace("  ", " ")


def _piqa(record: Record) -> Parts:
    """PIQA: "Question: goal", on the next line "Answer:", and a solution."""
    return f"Question: {get(record, 'goal', str)}\nAnswer:", _choices(record, "sol1", "sol2"), _numbers(2)


def _siqa(record: Record) -> Parts:
    """SIQA: "Q: context question", on the next line "A:", and an answer; answers are numbers from 1."""
    context = f"Q: {get(record, 'context', str)} {get(record, 'question', str)}\nA:"
    return context, _choices(record, "answerA", "answerB", "answerC"), _numbers(3, first=1)


def _mmlu(record: Record) -> Parts:
    """MMLU as at Hugging Face: `_lettered`; answers are numbers from 0."""
    return _lettered(get(record, "question", str), get_texts(record, "choices")), list(LETTERS), _numbers(len(LETTERS))


def _mmlu_row(record: Record) -> Parts:
    """MMLU's CSV: `_lettered`; answers are letters."""
    return _lettered(get(record, "question", str), _choices(record, *LETTERS)), list(LETTERS), list(LETTERS)


def _lettered(question: str, options: list[str]) -> str:
    """MMLU: the question, lines "A. ..." to "D. ..." and "Answer:"; the choices are the letters.

    lm-eval begins with a line that names the subject; here it is left out, for a CSV file does not say it.
    """
    if len(options) != len(LETTERS):
        raise ValueError(f"'choices' has {len(options)} texts; it must have {len(LETTERS)}")
    lines = [f"{letter}. {option}" for letter, option in zip(LETTERS, options, strict=True)]
    return "\n".join([question.strip(), *lines, "Answer:"])


def _choices(record: Record, *fields: str) -> list[str]:
    return [get(record, name, str) for name in fields]


class Form(NamedTuple):
    """How the records of a benchmark look."""

    fields: tuple[str, ...]
    """by which they are known"""
    answers: tuple[str, ...]
    """where the answer may be; the first that is there counts"""
    parts: Callable[[Record], Parts]
    between: str = " "
    """put between context and choice"""


FORMS = (
    Form(("question", "answerKey"), ("answerKey",), _arc),
    Form(("premise", "choice1", "choice2", "question"), ("label",), _copa),
    Form(("activity_label", "ctx", "endings"), ("label",), _hellaswag),
    Form(("goal", "sol1", "sol2"), ("label",), _piqa),
    Form(("context", "question", "answerA", "answerB", "answerC"), ("label",), _siqa),
    Form(("question", "choices", "subject"), ("answer",), _mmlu),
    Form(("question", *LETTERS), ("answer",), _mmlu_row),
)
GENERIC = Form((), NAMES["answer"], _generic, between="")

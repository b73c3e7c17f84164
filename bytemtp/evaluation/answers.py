"""Exact match in open questions: is what the model writes behind a question one of its right answers?

The model decodes greedily to the end of the line.  Its answer is right if it equals one of the question's, both
normalised as SQuAD does it.  The form of a question is found by its fields, and its prompt is that of EleutherAI's
lm-evaluation-harness (lm_eval/tasks: nq_open, triviaqa), which puts a question mark behind every question:

    NQ-open     {"question": "who ...", "answer": ["...", ...]}                      Q: who ...?
                                                                                     A:
    TriviaQA    {"question": "Who ...?", "answer": {"value": "...", "aliases": [...]}}
                and as published, in one object: {"Data": [{"Question":              Question: Who ...??
                "Who ...?", "Answer": {"Value": "...", "Aliases": [...]}}, ...]}     Answer:

lm-eval ends an answer at a comma and at a full stop, too, and begins NQ-open with "Answer these questions:".

Try:  python -m bytemtp.evaluate answers RUN --tasks NQ-open.dev.jsonl --examples NQ-open.train.jsonl --shots 5
"""

import json
import re
import string
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from bytemtp.common.checks import shown
from bytemtp.common.errors import UserError
from bytemtp.common.files import check_output, write_json
from bytemtp.common.jsonl import JsonLinesFile
from bytemtp.common.runtime import log, pick_device, progress
from bytemtp.decoding.generate import Options
from bytemtp.evaluation.code.problems import Record, records
from bytemtp.evaluation.code.samples import digest, fingerprint
from bytemtp.evaluation.tasks import get, get_texts, parsed, read_text
from bytemtp.model.checkpoint import load_model
from bytemtp.model.model import ByteMTP

NO_PUNCTUATION = str.maketrans("", "", string.punctuation)
ARTICLES = re.compile(r"\b(a|an|the)\b")
NQ_OPEN = ("Q: {}?\nA:", "\n")
TRIVIA_QA = ("Question: {}?\nAnswer:", "\n\n")
"""Prompts, and what stands behind an answer where another question follows."""
AT_A_TIME = 16
"""Questions."""


@dataclass(frozen=True)
class Command:
    """Exact match of a run's answers to open questions, as those of NQ-open and TriviaQA.

    An example:

        python -m bytemtp.evaluate answers runs/demo --tasks NQ-open.dev.jsonl --examples NQ-open.train.jsonl --shots 5

    The run's answer is what it writes to the end of the line, greedily; case, punctuation and articles do not count.
    """

    run: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="RUN")]
    """folder of the run, or one of its checkpoints/step-* folders"""
    tasks: Path
    """questions with their answers: JSON lines, plain, .gz or .zst, or TriviaQA's .json"""
    examples: tyro.conf.DisallowNone[Path | None] = None
    """file of questions that are put before each question with their answers; none of them should be in --tasks"""
    shots: int = 0
    """how many of --examples, from the front of the file"""
    max_bytes: int = 64
    """length of an answer at most"""
    json: tyro.conf.DisallowNone[Path | None] = None
    """also write the numbers to this file, with all answers"""
    out: tyro.conf.DisallowNone[Path | None] = None
    """write each answer to this file of JSON lines as it comes; given again, it goes on where it was"""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N"""

    def main(self) -> None:
        if self.max_bytes < 1:
            raise UserError(f"--max-bytes is {self.max_bytes}; it must be 1 or more")
        check_output(self.json)
        kept = None if self.out is None else earlier(self.out)
        questions, examples = read_questions(self.tasks), self._examples()
        device = pick_device(self.device)
        model = load_model(self.run, device.value)
        log(f"device: {device}  dtype: float32 (decoding's)")
        answers = ask(model, questions, examples, self.max_bytes, kept)
        print(answers)
        if self.json is not None:
            write_json(self.json, answers.as_dict())

    def _examples(self) -> "list[Question]":
        """UserError unless there are as many as --shots says."""
        if self.examples is None and not self.shots:
            return []
        if self.examples is None or self.shots < 1:
            raise UserError("--examples FILE and --shots N, with N 1 or more, go together; give both or neither")
        found = read_questions(self.examples)[: self.shots]
        if len(found) < self.shots:
            raise UserError(f"{self.examples} has {len(found)} questions; --shots is {self.shots}")
        return found


@dataclass(frozen=True)
class Question:
    """A question with its right answers."""

    asked: bytes
    """up to where the answer begins"""
    solved: bytes
    """with its first answer, as it stands before other questions"""
    answers: tuple[str, ...]


def read_questions(path: Path) -> list[Question]:
    """Questions of a file: JSON lines, plain, .gz or .zst, or TriviaQA's .json.  UserError names what is wrong."""
    return parsed(path, "questions", _placed(path), question_of)


def _placed(path: Path) -> Iterator[tuple[str, Any]]:
    """Each record with where it is."""
    if path.suffix != ".json":
        yield from ((f"line {number}", record) for number, record in records(path))
        return
    text = read_text(path)
    try:
        data = get(json.loads(text), "Data", list)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is no TriviaQA: {error}; a file of JSON lines must not end in .json") from None
    yield from ((f"question {number}", record) for number, record in enumerate(data, 1))


def question_of(record: Any) -> Question:
    """ValueError if a field is missing or of the wrong kind, or if there is no answer."""
    if not isinstance(record, dict):
        raise ValueError(f"it is {shown(record)}; it must be an object")
    if "Question" in record:
        answers = _with_aliases(get(record, "Answer", dict), "Value", ("Aliases", "NormalizedAliases", "HumanAnswers"))
        return _question(TRIVIA_QA, get(record, "Question", str), answers)
    if isinstance(record.get("answer"), dict):
        answers = _with_aliases(record["answer"], "value", ("aliases", "normalized_aliases"))
        return _question(TRIVIA_QA, get(record, "question", str), answers)
    return _question(NQ_OPEN, get(record, "question", str), get_texts(record, "answer"))


def _with_aliases(answer: Record, value: str, names: Sequence[str]) -> list[str]:
    """The answer and all its other names, in as many of these fields as there are."""
    return [get(answer, value, str), *(text for name in names if name in answer for text in get_texts(answer, name))]


def _question(prompt: tuple[str, str], text: str, answers: Sequence[str]) -> Question:
    if not answers:
        raise ValueError("it has no answer")
    asked = prompt[0].format(text)
    return Question(asked.encode(), f"{asked} {answers[0]}{prompt[1]}".encode(), tuple(answers))


def normalised(text: str) -> str:
    """As SQuAD's scorer does it: lower case, without punctuation (ASCII's), articles and more than single blanks."""
    return " ".join(ARTICLES.sub(" ", text.lower().translate(NO_PUNCTUATION)).split())


def is_right(given: str, answers: Sequence[str]) -> bool:
    """Is an answer, normalised, one of the right ones?  An empty one never is, though "The The" is normalised to it."""
    return bool(given.strip()) and normalised(given) in map(normalised, answers)


def earlier(path: Path) -> JsonLinesFile:
    """The answers that are there.  UserError if it is a file of other things."""
    kept = JsonLinesFile(path)
    if not all(isinstance(line, dict) and line.keys() >= {"digest", "answer"} for line in kept.records):
        raise UserError(f"{path} has a line that is no answer; choose another file")
    return kept


@dataclass(frozen=True)
class Answers:
    """What a model has answered."""

    questions: Sequence[Question]
    given: Sequence[str]
    """its answer to each; bytes that are no UTF-8 are U+FFFD"""

    def as_dict(self) -> dict[str, Any]:
        """The numbers by name."""
        right = [is_right(text, each.answers) for text, each in zip(self.given, self.questions, strict=True)]
        return {
            "questions": len(right),
            "correct": sum(right),
            "exact_match": sum(right) / len(right),
            "answers": list(self.given),
            "right": right,
        }

    def __str__(self) -> str:
        record = self.as_dict()
        return (
            f"{'questions':24}{record['questions']:,}\n"
            f"{'exact_match':24}{record['exact_match']:.4f}  ({record['correct']:,} right)"
        )


def ask(
    model: ByteMTP,
    questions: Sequence[Question],
    examples: Sequence[Question] = (),
    max_bytes: int = 64,
    kept: JsonLinesFile | None = None,
) -> Answers:
    """Have the model answer each question, greedily and up to `max_bytes` long, behind the examples.

    kept: has answers that were given before, and gets each new one as it comes.
    """
    before = b"".join(example.solved for example in examples)
    prompts = [before + question.asked for question in questions]
    around = f"{fingerprint(model)} {max_bytes} ".encode() if kept is not None else b""
    names = {prompt: digest(around + prompt) for prompt in prompts}
    given = {line["digest"]: line["answer"] for line in kept.records} if kept is not None else {}
    missing = [prompt for prompt, name in names.items() if name not in given]
    with progress(len(names), "questions", "answered", len(names) - len(missing)) as bar:
        for prompt, answer in written(model, missing, max_bytes):
            given[names[prompt]] = answer
            if kept is not None:
                kept.append([{"prompt": prompt.decode(), "answer": answer, "digest": names[prompt]}])
            bar.update()
    return Answers(questions, [given[names[prompt]] for prompt in prompts])


def written(model: ByteMTP, prompts: Sequence[bytes], max_bytes: int) -> Iterator[tuple[bytes, str]]:
    """Prompts with what the model writes to the end of the line, as each ends; some are decoded at a time."""
    options = Options(mode="auto", stop=[b"\n"])
    rows = {prompt: options.row(prompt, number, max_bytes) for number, prompt in enumerate(prompts)}
    for prompt, row in options.ended(model, rows, AT_A_TIME):
        yield prompt, row.data.decode("utf-8", "replace").strip()

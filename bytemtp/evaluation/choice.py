"""Multiple choice by log-likelihood: which of some continuations does the model find likeliest?

Each choice is scored as the bytes that follow the context, by the law that decoding draws from at temperature 1: a byte
sees as far back as in decoding.  Three accuracies, since the sum over its bytes favours a short choice:

    accuracy                 the answer has the greatest total log-likelihood     (lm-eval: acc)
    accuracy_per_character   the greatest log-likelihood per character            (lm-eval: acc_norm)
    accuracy_per_byte        the greatest log-likelihood per byte

As in lm-eval, the characters are those of the choice alone, without what --between puts before it; the bytes are all.

A tie goes to the choice that stands first.

Try:  python -m bytemtp.evaluate choice RUN --tasks tasks.jsonl
"""

import math
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import tyro
from tqdm import tqdm

from bytemtp.common.errors import UserError
from bytemtp.common.files import check_output, write_json
from bytemtp.common.runtime import log, pick_device
from bytemtp.common.vocab import EOT
from bytemtp.evaluation.bits_per_byte import IDS_A_PASS
from bytemtp.evaluation.tasks import Task, read_tasks
from bytemtp.model.checkpoint import load_model
from bytemtp.model.model import ByteMTP


@dataclass(frozen=True)
class Command:
    """Accuracy of a run in multiple choice, by log-likelihood in all, per character and per byte.

    An example:

        python -m bytemtp.evaluate choice runs/demo --tasks tasks.jsonl --json choice.json

    Each line of the file: {"context": "2 + 2 =", "choices": [" 4", " 5"], "answer": 0}.  Known names: context, query,
    ctx, question or prompt; choices, endings or options; answer, gold or label, the number of the right choice from 0.
    Also known, by their fields, are the files of ARC, COPA, HellaSwag, PIQA, SIQA and MMLU as they are published; they
    get the prompts of lm-eval.
    """

    run: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="RUN")]
    """folder of the run, or one of its checkpoints/step-* folders"""
    tasks: Path
    """JSON lines, plain, .gz or .zst, or MMLU's .csv"""
    labels: tyro.conf.DisallowNone[Path | None] = None
    """file of the right answers, one a line, where they are not in --tasks, as for PIQA and SIQA"""
    between: tyro.conf.DisallowNone[str | None] = None
    """put between context and choice; by default " " for published files, as in lm-eval, and for others nothing: most
    need " " where choices do not begin with a space"""
    json: tyro.conf.DisallowNone[Path | None] = None
    """also write the numbers to this file, with the log-likelihoods (in nats) of each choice"""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N"""

    def main(self) -> None:
        check_output(self.json)
        tasks = read_tasks(self.tasks, self.between, self.labels)
        device = pick_device(self.device)
        model = load_model(self.run, device.value)
        log(f"device: {device}  dtype: float32 (decoding's)")
        score = answer(model, tasks)
        print(score)
        if self.json is not None:
            write_json(self.json, score.as_dict())


@dataclass(frozen=True)
class Score:
    """What the model answered."""

    tasks: Sequence[Task]
    nats: Sequence[Sequence[float]]
    """log-likelihood of each choice of each task"""

    def right(self, sizes: Callable[[Task], Sequence[int]]) -> int:
        """Tasks whose answer has the greatest log-likelihood for its size."""
        return sum(
            best_choice(nats, sizes(task)) == task.answer for task, nats in zip(self.tasks, self.nats, strict=True)
        )

    def as_dict(self) -> dict[str, Any]:
        """The numbers by name."""
        count = len(self.tasks)
        scores: dict[str, float] = {}
        for name, sizes in SIZES.items():
            scores[f"correct{name}"] = self.right(sizes)
            scores[f"accuracy{name}"] = self.right(sizes) / count
        return {
            "tasks": count,
            **scores,
            "chance": sum(1 / len(task.choices) for task in self.tasks) / count,
            "answers": [task.answer for task in self.tasks],
            "log_likelihoods": [list(nats) for nats in self.nats],
            "choice_bytes": [task.byte_counts for task in self.tasks],
            "choice_characters": [task.character_counts for task in self.tasks],
        }

    def __str__(self) -> str:
        record = self.as_dict()
        lines = [
            f"{'accuracy' + name:24}{record['accuracy' + name]:.4f}  ({record['correct' + name]:,} right)"
            for name in SIZES
        ]
        return "\n".join([f"{'tasks':24}{record['tasks']:,}", *lines, f"{'chance':24}{record['chance']:.4f}"])


SIZES: dict[str, Callable[[Task], Sequence[int]]] = {
    "": lambda task: [1] * len(task.choices),
    "_per_character": lambda task: task.character_counts,
    "_per_byte": lambda task: task.byte_counts,
}
"""What each accuracy divides by, by the ending of its name."""


def best_choice(nats: Sequence[float], sizes: Sequence[int]) -> int:
    """Number of the choice with the greatest log-likelihood for its size; of equals the first."""
    values = [value / size for value, size in zip(nats, sizes, strict=True)]
    return values.index(max(values))


def answer(model: ByteMTP, tasks: Sequence[Task]) -> Score:
    """Score every choice of every task."""
    texts = [(task.context, choice) for task in tasks for choice in task.choices]
    nats: list[float] = [0.0] * len(texts)
    with tqdm(total=len(texts), unit="choice", desc="scored", disable=None, file=sys.stderr) as bar:
        for numbers in batches([len(context) + len(choice) for context, choice in texts]):
            for number, value in zip(numbers, log_likelihoods(model, [texts[i] for i in numbers]), strict=True):
                nats[number] = value
            bar.update(len(numbers))
    if not all(map(math.isfinite, nats)):
        raise UserError("the model's log-likelihoods are not finite: its weights are damaged; use another checkpoint")
    given = iter(nats)
    return Score(tasks, [[next(given) for _ in task.choices] for task in tasks])


def batches(lengths: Sequence[int]) -> Iterator[list[int]]:
    """Numbers of texts of similar length, as many together as fit into a pass."""
    batch: list[int] = []
    for number in sorted(range(len(lengths)), key=lambda i: lengths[i]):
        if batch and (len(batch) + 1) * lengths[number] > IDS_A_PASS:
            yield batch
            batch = []
        batch.append(number)
    if batch:
        yield batch


@torch.no_grad()
def log_likelihoods(model: ByteMTP, texts: Sequence[tuple[bytes, bytes]]) -> list[float]:
    """Nats of each second part as what follows the first.  Texts are filled up behind, where no earlier byte looks."""
    whole = [[EOT, *context, *choice] for context, choice in texts]
    longest = max(map(len, whole))
    ids = torch.tensor([row + [EOT] * (longest - len(row)) for row in whole], device=model.device)
    logits = model.logits(0, model.first_hidden(ids[:, :-1], model.reach))
    nats = logits.log_softmax(-1).gather(-1, ids[:, 1:, None])[..., 0].double().cpu()
    ends = [len(context) + len(choice) for context, choice in texts]
    return [float(row[end - len(choice) : end].sum()) for row, end, (_, choice) in zip(nats, ends, texts, strict=True)]

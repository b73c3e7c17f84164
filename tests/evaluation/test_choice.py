"""Multiple choice: log-likelihoods against one pass a byte, the accuracies, and the command."""

import json
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bytemtp import evaluate
from bytemtp.common.errors import UserError
from bytemtp.common.settings import ModelConfig
from bytemtp.common.vocab import EOT
from bytemtp.evaluation import choice
from bytemtp.evaluation.choice import SIZES, Score, answer, batches, best_choice
from bytemtp.evaluation.tasks import Task, read_tasks, task_of
from bytemtp.model.model import ByteMTP

TINY = ModelConfig(dim=16, layers=4, attention_heads=2, ffn_dim=24, n_future=3)
TASK = {"context": "The rose is", "choices": [" red", " a rose"], "answer": 1}
CHOICES = st.lists(st.binary(min_size=1, max_size=6), min_size=2, max_size=3).map(tuple)
TASKS = st.lists(st.tuples(st.binary(max_size=12), CHOICES, st.integers(0, 1)), min_size=1, max_size=4)
"""Fields of tasks."""


def tiny(topology="parallel", **changes) -> ByteMTP:
    return ByteMTP(replace(TINY, topology=topology, **changes), seed=1).eval()


@torch.no_grad()
def slow_nats(model: ByteMTP, context: bytes, following: bytes) -> float:
    """One forward pass a byte."""
    ids, total = [EOT, *context], 0.0
    for byte in following:
        total += float(model(torch.tensor([ids]))[0, 0, -1].log_softmax(0)[byte])
        ids.append(byte)
    return total


@settings(max_examples=25)
@given(tasks=TASKS, topology=st.sampled_from(["parallel", "anticausal", "linear", "deepseek"]), room=st.integers(1, 60))
def test_log_likelihoods_equal_one_pass_a_byte(tasks, topology, room):
    model, tasks = tiny(topology), [Task(*fields) for fields in tasks]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(choice, "IDS_A_PASS", room)
        score = answer(model, tasks)
    for task, nats in zip(tasks, score.nats, strict=True):
        expected = [slow_nats(model, task.context, following) for following in task.choices]
        assert nats == pytest.approx(expected, rel=1e-4, abs=1e-4)


def test_a_damaged_model_has_no_accuracy():
    """Its first choice was always taken for the best."""
    model = tiny()
    with torch.no_grad():
        model.norm.weight.fill_(torch.nan)
    with pytest.raises(UserError, match="log-likelihoods are not finite: its weights are damaged"):
        answer(model, [Task(b"a", (b"b", b"c"), 0)])


def test_a_byte_sees_as_far_back_as_in_decoding():
    """A model with a window, and one that was trained on rows of that length, are the same."""
    task = Task(b"a context that is longer than the window", (b" and so", b" on"), 0)
    trained, windowed = tiny(), tiny(window=8)
    trained.trained_length = 8
    assert answer(trained, [task]).nats == answer(windowed, [task]).nats
    assert answer(trained, [task]).nats != answer(tiny(), [task]).nats


def test_the_accuracies_count_what_they_say():
    """The sum prefers the short choice, the mean the long one."""
    tasks = [
        Task(b"", (b"ab", b"abcdefgh"), 1),
        Task(b"", (b"ab", b"abcdefgh"), 0),
        Task(b"", (b"a", b"b", b"c", b"d"), 3),
    ]
    score = Score(tasks, [[-4.0, -8.0], [-4.0, -8.0], [-3.0, -2.0, -9.0, -2.0]])
    record = score.as_dict()
    assert (record["tasks"], record["correct"], record["correct_per_byte"]) == (3, 1, 1)
    assert (record["accuracy"], record["chance"]) == (1 / 3, (0.5 + 0.5 + 0.25) / 3)
    assert best_choice(score.nats[0], tasks[0].byte_counts) == 1
    assert best_choice(score.nats[2], [1] * 4) == 1, "of equals the first"


def test_per_character_is_lm_evals_acc_norm_and_per_byte_is_not(tmp_path):
    """A choice of two-byte characters; and what --between puts before a choice has no part in its length."""
    (tmp_path / "tasks.jsonl").write_text(json.dumps({**TASK, "choices": ["éé", "abc"], "answer": 0}))
    for between in ("", " - ", "-" * 20):
        [task] = read_tasks(tmp_path / "tasks.jsonl", between)
        assert (task.character_counts, task.byte_counts) == ([2, 3], [len(between) + 4, len(between) + 3])
        record = Score([task], [[-2.0, -3.1]]).as_dict()
        assert record["correct_per_character"] == 1, "-1 a character against -1.033"
    [task] = read_tasks(tmp_path / "tasks.jsonl")
    record = Score([task], [[-3.6, -3.0]]).as_dict()
    assert (record["accuracy"], record["accuracy_per_character"], record["accuracy_per_byte"]) == (0, 0, 1)
    assert record["choice_characters"] == [[2, 3]] and record["choice_bytes"] == [[4, 3]]


@given(nats=st.lists(st.floats(-99, -0.1), min_size=2, max_size=4), choices=st.data())
def test_accuracies_against_those_of_lm_eval(nats, choices):
    """Its lines: argmax(lls), and argmax(lls / len) where len counts the characters of each choice."""
    texts = [choices.draw(st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=5)) for _ in nats]
    task = task_of({"context": "", "choices": texts, "answer": 0}, between=" ")
    record = Score([task], [nats]).as_dict()
    assert record["accuracy"] == (np.argmax(nats) == 0)
    assert record["accuracy_per_character"] == (np.argmax(np.array(nats) / [float(len(text)) for text in texts]) == 0)


@given(lengths=st.lists(st.integers(1, 9000), max_size=30))
def test_batches_hold_every_text_once_and_fit(lengths):
    found = list(batches(lengths))
    assert sorted(number for batch in found for number in batch) == list(range(len(lengths)))
    for batch in found:
        assert len(batch) == 1 or len(batch) * max(lengths[i] for i in batch) <= choice.IDS_A_PASS


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["RUN"], "--tasks"),
        (["RUN", "--tasks", "missing"], "cannot read missing"),
        (["RUN", "--tasks", "FILE", "--labels", "missing"], "cannot read missing"),
        (["RUN", "--tasks", "EMPTY"], "has no tasks"),
        (["EMPTY", "--tasks", "FILE"], "holds no checkpoint"),
        (["RUN", "--tasks", "FILE", "--json", "NOWHERE"], "cannot write"),
    ],
)
def test_bad_input_is_one_clear_line(trained_run, tmp_path, arguments, message):
    (tmp_path / "file").write_text(json.dumps(TASK))
    (tmp_path / "empty").touch()
    stand_for = {"RUN": trained_run, "FILE": tmp_path / "file", "EMPTY": tmp_path / "empty"}
    stand_for["NOWHERE"] = tmp_path / "no" / "file.json"
    with pytest.raises(UserError) as caught:
        evaluate.main(["choice", *(str(stand_for.get(word, word)) for word in arguments)])
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_command_prints_and_writes_the_same_numbers(trained_run, tmp_path, capsys):
    (tmp_path / "tasks.jsonl").write_text("\n".join(json.dumps({**TASK, "answer": i % 2}) for i in range(5)))
    program = [
        "choice",
        str(trained_run),
        "--tasks",
        str(tmp_path / "tasks.jsonl"),
        "--json",
        str(tmp_path / "out.json"),
    ]
    evaluate.main(program)
    record = json.loads((tmp_path / "out.json").read_text())
    printed = capsys.readouterr().out
    assert record["tasks"] == 5 and record["correct"] in (2, 3) and record["chance"] == 0.5
    for ending in SIZES:
        assert re.search(rf"^accuracy{ending} +{record['accuracy' + ending]:.4f} ", printed, flags=re.MULTILINE)
    assert record["choice_bytes"] == [[4, 7]] * 5


def test_command_reads_a_published_file_with_its_file_of_labels(trained_run, tmp_path):
    """PIQA: the blank between context and choice is scored and is no character of the choice."""
    record = {"goal": "dry a rose", "sol1": "hang it up", "sol2": "eat it"}
    (tmp_path / "valid.jsonl").write_text(f"{json.dumps(record)}\n" * 2)
    (tmp_path / "valid-labels.lst").write_text("0\n1\n")
    files = ["--tasks", str(tmp_path / "valid.jsonl"), "--labels", str(tmp_path / "valid-labels.lst")]
    evaluate.main(["choice", str(trained_run), *files, "--json", str(tmp_path / "out.json")])
    record = json.loads((tmp_path / "out.json").read_text())
    assert (record["answers"], record["correct"]) == ([0, 1], 1)
    assert (record["choice_bytes"], record["choice_characters"]) == ([[11, 7]] * 2, [[10, 6]] * 2)

"""Tasks from files: each published form by a record in its layout, and one line for every bad record."""

import csv
import gzip
import io
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bytemtp.common.errors import UserError
from bytemtp.evaluation.tasks import Task, read_tasks, task_of

TASK = {"context": "The rose is", "choices": [" red", " a rose"], "answer": 1}
ARC = {
    "id": "Mercury_1",
    "question": {"stem": "What is red?", "choices": [{"text": "a rose", "label": "A"}, {"text": "rain", "label": "B"}]},
    "answerKey": "B",
}
ARC_HUGGING_FACE = {
    "id": "NYSEDREGENTS_1",
    "question": "What is red?",
    "choices": {"text": ["a rose", "rain", "a lake"], "label": ["1", "2", "3"]},
    "answerKey": "3",
}
COPA = {
    "premise": "The rose was dry.",
    "choice1": "It had not rained.",
    "choice2": "It had rained.",
    "question": "cause",
    "label": 0,
    "idx": 4,
}
HELLASWAG = {
    "ind": 24,
    "activity_label": "Cutting roses",
    "ctx_a": "A man has a rose.",
    "ctx_b": "he",
    "ctx": "A man has a rose. he",
    "split": "val",
    "split_type": "indomain",
    "label": 3,
    "endings": ["eats it.", "is one.", "is red.", "cuts it."],
    "source_id": "activitynet~v_1",
}
PIQA = {"goal": "To dry a rose,", "sol1": "hang it up.", "sol2": "eat it.", "label": 1}
SIQA = {
    "context": "Kai got a rose.",
    "question": "How would Kai feel?",
    "answerA": "red",
    "answerB": "glad",
    "answerC": "dry",
    "label": "2",
}
MMLU = {"question": "What is red? ", "subject": "botany", "choices": ["rain", "a lake", "a rose", "dew"], "answer": 2}
MMLU_CONTEXT = b"What is red?\nA. rain\nB. a lake\nC. a rose\nD. dew\nAnswer:"
LETTERS = (b" A", b" B", b" C", b" D")


def without(record: dict, *names: str) -> dict:
    return {name: value for name, value in record.items() if name not in names}


def lines(*records: dict) -> str:
    return "\n".join(map(json.dumps, records)) + "\n"


@pytest.mark.parametrize(
    "record",
    [
        TASK,
        {"query": "The rose is", "choices": [" red", " a rose"], "gold": 1},
        {"ctx": "The rose is", "endings": [" red", " a rose"], "label": "1", "ind": 7},
    ],
)
def test_common_names_are_known(tmp_path, record):
    (tmp_path / "tasks.jsonl").write_text(json.dumps(record) + "\n\n")
    assert read_tasks(tmp_path / "tasks.jsonl") == [Task(b"The rose is", (b" red", b" a rose"), 1)]


def test_text_between_belongs_to_the_choice(tmp_path):
    (tmp_path / "tasks.jsonl.gz").write_bytes(gzip.compress(json.dumps({**TASK, "choices": ["é", "b"]}).encode()))
    assert read_tasks(tmp_path / "tasks.jsonl.gz", " ")[0].choices == (" é".encode(), b" b")


@pytest.mark.parametrize(
    ("record", "context", "choices", "answer"),
    [
        (ARC, b"Question: What is red?\nAnswer:", (b" a rose", b" rain"), 1),
        (ARC_HUGGING_FACE, b"Question: What is red?\nAnswer:", (b" a rose", b" rain", b" a lake"), 2),
        (COPA, b"The rose was dry because", (b" It had not rained.", b" It had rained."), 0),
        (
            {**COPA, "question": "effect", "premise": "The rose was dry. ", "label": 1},
            b"The rose was dry therefore",
            ...,
            1,
        ),
        (HELLASWAG, b"Cutting roses: A man has a rose. He", (b" eats it.", b" is one.", b" is red.", b" cuts it."), 3),
        (PIQA, b"Question: To dry a rose,\nAnswer:", (b" hang it up.", b" eat it."), 1),
        (SIQA, b"Q: Kai got a rose. How would Kai feel?\nA:", (b" red", b" glad", b" dry"), 1),
        (MMLU, MMLU_CONTEXT, LETTERS, 2),
    ],
)
def test_published_forms(record, context, choices, answer):
    task = task_of(record)
    assert (task.context, task.answer, task.between) == (context, answer, " ")
    assert choices is ... or task.choices == choices
    assert task_of(record, between="\t").choices == tuple(b"\t" + choice[1:] for choice in task.choices)


def test_hellaswag_from_wikihow_loses_its_marks():
    context = "[header] How to dry a rose [title] Hang it up. [step] Use a nail."
    endings = ["[substeps] Do it [title] Wait.", "Eat  it."]
    task = task_of({**HELLASWAG, "ctx_a": context, "ctx_b": "", "ctx": context, "endings": endings, "label": "1"})
    assert task.context == b"Cutting roses: How to dry a rose. Hang it up. Use a nail."
    assert task.choices == (b"  Do it. Wait.", b" Eat it."), "a blank is left where an ending began with a mark"
    assert task_of(without({**HELLASWAG, "ctx": context}, "ctx_a", "ctx_b")).context == task.context


TEXTS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=9)


@given(rows=st.lists(st.tuples(TEXTS, TEXTS, TEXTS, TEXTS, TEXTS, st.sampled_from("ABCD")), min_size=1, max_size=3))
def test_mmlus_csv_is_its_other_form(tmp_path_factory, rows):
    """Questions with commas, quotes and several lines, too."""
    out = io.StringIO(newline="")
    csv.writer(out).writerows(rows)
    path = tmp_path_factory.getbasetemp() / "botany_test.csv"
    path.write_bytes(out.getvalue().encode())
    records = [
        {"subject": "botany", "question": row[0], "choices": list(row[1:5]), "answer": "ABCD".index(row[5])}
        for row in rows
    ]
    assert read_tasks(path) == list(map(task_of, records))


@pytest.mark.parametrize(("record", "labels"), [(PIQA, "1\n0\n"), (SIQA, "2\r\n3\r\n"), (TASK, "\ufeff1\n0")])
def test_labels_of_another_file(tmp_path, record, labels):
    (tmp_path / "dev.jsonl").write_text(lines(*[without(record, "label", "answer")] * 2))
    (tmp_path / "dev-labels.lst").write_bytes(labels.encode())
    first, second = read_tasks(tmp_path / "dev.jsonl", labels=tmp_path / "dev-labels.lst")
    assert first == task_of(record) and second.choices == first.choices
    assert second.answer == (2 if record is SIQA else 0)


@pytest.mark.parametrize(
    ("records", "labels", "message"),
    [
        ([without(PIQA, "label")] * 2, b"1\n", "has 1 labels and FILE 2 tasks; each task needs one"),
        ([PIQA], b"1\n", "line 1: it has an answer, 1, so a file of labels must not be given"),
        ([without(PIQA, "label")], b"2\n", "line 1: the answer is '2'; it must be one of 0, 1"),
        ([without(PIQA, "label")], b"\xff\n", "is not UTF-8"),
    ],
)
def test_bad_labels_are_named(tmp_path, records, labels, message):
    (tmp_path / "file").write_text(lines(*records))
    (tmp_path / "labels").write_bytes(labels)
    with pytest.raises(UserError) as caught:
        read_tasks(tmp_path / "file", labels=tmp_path / "labels")
    assert message.replace("FILE", str(tmp_path / "file")) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 2 is not JSON"),
        ("[1]", "every line must be a JSON object"),
        ({"choices": ["a", "b"], "answer": 0}, "no field 'context' or 'query'"),
        (without(TASK, "choices"), "no field 'choices' or 'endings' or 'options'; it has 'context', 'answer'"),
        (without(TASK, "answer"), "no field 'answer' or 'gold' or 'label'; it has 'context', 'choices'"),
        ({**TASK, "context": 3}, "'context' is 3; it must be a text"),
        ({**TASK, "choices": ["a"]}, "two or more texts"),
        ({**TASK, "choices": ["a", ""]}, "none of them empty"),
        ({**TASK, "choices": ["a", 1]}, "'choices' is ['a', 1]; it must be a list of texts"),
        ({**TASK, "choices": "ab"}, "'choices' is 'ab'; it must be a list"),
        ({**TASK, "answer": 2}, "the answer is 2; it must be one of 0, 1"),
        ({**TASK, "answer": True}, "the answer is True"),
        ({**TASK, "answer": "B"}, "the answer is 'B'"),
        ({**TASK, "context": "\ud800"}, "surrogates not allowed"),
        ({**ARC, "answerKey": "E"}, "the answer is 'E'; it must be one of A, B"),
        ({**ARC, "question": {"stem": "What?"}}, "no field 'choices' in {'stem': 'What?'}"),
        ({**ARC, "question": {"stem": "What?", "choices": ["a"]}}, "no field 'text' in 'a'"),
        ({**ARC, "question": "What?"}, "no field 'choices' in {'id'"),
        ({**ARC_HUGGING_FACE, "choices": {"text": ["a", "b"], "label": ["A"]}}, "has 2 texts and 1 labels"),
        ({**COPA, "question": "why"}, "'question' is 'why'; it must be one of cause, effect"),
        (
            without(COPA, "label"),
            "no field 'label'; it has 'premise', 'choice1', 'choice2', 'question', 'idx'; a file of",
        ),
        ({**COPA, "label": -1}, "the answer is -1; it must be one of 0, 1"),
        ({**HELLASWAG, "label": ""}, "the answer is ''; it must be one of 0, 1, 2, 3"),
        ({**HELLASWAG, "endings": [1, 2]}, "'endings' is [1, 2]; it must be a list of texts"),
        ({**PIQA, "sol2": None}, "'sol2' is None; it must be a text"),
        ({**PIQA, "sol2": ""}, "none of them empty"),
        ({**SIQA, "label": "0"}, "the answer is '0'; it must be one of 1, 2, 3"),
        ({**MMLU, "choices": ["a", "b"]}, "'choices' has 2 texts; it must have 4"),
    ],
)
def test_a_bad_task_is_named_by_its_line(tmp_path, line, message):
    text = line if isinstance(line, str) else json.dumps(line)
    (tmp_path / "tasks.jsonl").write_text(json.dumps(TASK) + "\n" + text + "\n")
    with pytest.raises(UserError) as caught:
        read_tasks(tmp_path / "tasks.jsonl")
    assert message in str(caught.value) and "line 2" in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (b"What?,a,b,c,d", "line 2 has 5 columns; it must have 6: question, A, B, C, D, answer"),
        (b"What?,a,b,c,d,E", "line 2: the answer is 'E'; it must be one of A, B, C, D"),
        (b"What?,a,b,c,d,2", "line 2: the answer is '2'"),
        (b"W" * 200_000, "line 2 is not CSV: field larger than field limit"),
        (b"\xff", "is not UTF-8"),
    ],
)
def test_a_bad_row_is_named_by_its_line(tmp_path, row, message):
    (tmp_path / "botany.csv").write_bytes(b"What?,a,b,c,d,A\n" + row + b"\n")
    with pytest.raises(UserError) as caught:
        read_tasks(tmp_path / "botany.csv")
    assert message in str(caught.value) and "\n" not in str(caught.value)

"""Open questions: the published forms, exact match, and the command against plain decoding."""

import json
import re
from itertools import islice

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bytemtp import evaluate
from bytemtp.common.errors import UserError
from bytemtp.common.settings import ModelConfig
from bytemtp.decoding.generate import generate
from bytemtp.evaluation import answers
from bytemtp.evaluation.answers import Answers, Question, ask, is_right, normalised, question_of, read_questions
from bytemtp.model.checkpoint import load_model
from bytemtp.model.model import ByteMTP

NQ_OPEN = {"question": "who sang rose", "answer": ["The Roses", "Rose, Ltd."]}
TRIVIA_QA = {
    "Data": [
        {
            "Answer": {
                "Aliases": ["Roses (band)", "The Roses"],
                "HumanAnswers": ["those roses"],
                "MatchedWikiEntityName": "Roses",
                "NormalizedAliases": ["roses band", "roses"],
                "NormalizedValue": "roses",
                "Type": "WikipediaEntity",
                "Value": "Roses",
            },
            "EntityPages": [],
            "Question": "Who sang Rose?",
            "QuestionId": "tc_1",
            "QuestionSource": "http://example.org/",
        }
    ],
    "Domain": "unfiltered-web",
    "Split": "dev",
    "VerifiedEval": False,
    "Version": 1.0,
}
HUGGING_FACE = {
    "question": "Who sang Rose?",
    "question_id": "tc_1",
    "answer": {
        "aliases": ["Roses (band)", "The Roses"],
        "normalized_aliases": ["roses band", "roses"],
        "type": "WikipediaEntity",
        "value": "Roses",
    },
}
ALIASES = ("Roses", "Roses (band)", "The Roses", "roses band", "roses")


def test_nq_open():
    question = question_of(NQ_OPEN)
    assert (question.asked, question.answers) == (b"Q: who sang rose?\nA:", ("The Roses", "Rose, Ltd."))
    assert question.solved == b"Q: who sang rose?\nA: The Roses\n"


def test_trivia_qa_as_published_and_at_hugging_face(tmp_path):
    (tmp_path / "web-dev.json").write_text(json.dumps(TRIVIA_QA, indent=4))
    (tmp_path / "dev.jsonl").write_text(json.dumps(HUGGING_FACE) + "\n")
    [published], [other] = read_questions(tmp_path / "web-dev.json"), read_questions(tmp_path / "dev.jsonl")
    assert published.asked == other.asked == b"Question: Who sang Rose??\nAnswer:"
    assert published.solved == other.solved == b"Question: Who sang Rose??\nAnswer: Roses\n\n"
    assert (published.answers, other.answers) == ((*ALIASES, "those roses"), ALIASES)


TEXTS = st.text(st.sampled_from("aAnNtThHeE .,'\"-_1\u00c9\u2019\u0301") | st.characters(), max_size=20)
WORDS = st.lists(st.text("abehntrABEHNTR\u00e901", min_size=1, max_size=6), max_size=5)


@given(text=TEXTS)
def test_what_is_normalised_stays_as_it_is(text):
    assert normalised(normalised(text)) == normalised(text)


@given(words=WORDS, data=st.data())
def test_case_articles_punctuation_and_blanks_do_not_count(words, data):
    def noise(choices):
        return data.draw(st.sampled_from(choices))

    plain = " ".join(words)
    noisy = "".join(
        noise(["", " ", "\t"])
        + noise(["", "a ", "An ", "the "])
        + noise([str.upper, str.lower])(word)
        + noise([" ", ", "])
        for word in words
    )
    assert normalised(noisy) == normalised(plain)


def test_an_answer_is_right_if_it_equals_one_of_them():
    for text in ("roses", " the ROSES.", "Rose Ltd"):
        assert is_right(text, NQ_OPEN["answer"])
    for text in ("", "rose", "roses band", "roses roses"):
        assert not is_right(text, NQ_OPEN["answer"])


def test_no_answer_is_not_the_band_whose_name_is_articles():
    """Both are normalised to nothing."""
    assert is_right("The The", ["The The"]) and not is_right("", ["The The"]) and not is_right(" \n", ["The The"])


def test_exact_match_is_the_share_of_right_answers():
    score = Answers([question_of(NQ_OPEN)] * 3, ["the roses", "", "Rose, Ltd"])
    record = score.as_dict()
    assert (record["questions"], record["correct"], record["exact_match"]) == (3, 2, 2 / 3)
    assert (record["right"], record["answers"]) == ([True, False, True], ["the roses", "", "Rose, Ltd"])
    assert str(score).splitlines() == [f"{'questions':24}3", f"{'exact_match':24}0.6667  (2 right)"]


def test_examples_stand_before_the_question(one_head_run):
    model, question = load_model(one_head_run, "cpu"), question_of(NQ_OPEN)
    plain = generate(model, question.solved * 2 + question.asked, 24).data
    [found] = ask(model, [question], [question] * 2, max_bytes=24).given
    assert found == plain.split(b"\n")[0].decode("utf-8", "replace").strip()


@given(st.lists(st.text("abc ", max_size=9).map(str.encode), max_size=40), st.integers(1, 12))
def test_an_answer_is_what_is_written_to_the_end_of_the_line(asked, max_bytes):
    """By a model that often ends one, for each question as for it alone."""
    model = ByteMTP(ModelConfig(dim=16, layers=1, attention_heads=1, ffn_dim=16, n_future=2)).eval()
    with torch.no_grad():
        for unembed in model.unembed:
            unembed.weight[[*b"\n \xe9c"]] *= 4
    alone = [generate(model, text, max_bytes, stop=[b"\n"]).data for text in asked]
    expected = [data.split(b"\n")[0].decode("utf-8", "replace").strip() for data in alone]
    assert ask(model, [Question(text, b"", ("a",)) for text in asked], max_bytes=max_bytes).given == expected


def test_an_answer_has_64_bytes_at_most_unless_said(one_head_run):
    model, question = load_model(one_head_run, "cpu"), question_of(NQ_OPEN)
    written = generate(model, question.asked, 64, stop=[b"\n"]).data
    assert len(written) == 64 and ask(model, [question]).given == [written.decode("utf-8", "replace").strip()]


@pytest.mark.parametrize("killed_after", [0, 1, 3])
def test_a_killed_command_goes_on_where_it_was(one_head_run, tmp_path, monkeypatch, killed_after):
    """With another length of answers, or another model, all questions are asked again."""
    model, path = load_model(one_head_run, "cpu"), tmp_path / "answers.jsonl"
    questions = [Question(f"Q: {i % 4}?\nA:".encode(), b"", ("a",)) for i in range(6)]
    asked, decode = [], answers.written

    def stopped(model, prompts, max_bytes):
        yield from islice(decode(model, prompts, max_bytes), killed_after)
        raise KeyboardInterrupt

    def counted(model, prompts, max_bytes):
        asked.append(len(prompts))
        return decode(model, prompts, max_bytes)

    monkeypatch.setattr(answers, "written", stopped)
    with pytest.raises(KeyboardInterrupt):
        ask(model, questions, max_bytes=8, kept=answers.earlier(path))
    monkeypatch.setattr(answers, "written", counted)
    for max_bytes in (8, 8, 9):
        assert ask(model, questions, max_bytes=max_bytes, kept=answers.earlier(path)) == ask(
            model, questions, max_bytes=max_bytes
        )
    with torch.no_grad():
        model.norm.weight *= 2
    ask(model, questions, max_bytes=8, kept=answers.earlier(path))
    assert asked[::2] == [4 - killed_after, 0, 4, 4]
    path.write_text('{"task_id": "a"}\n')
    with pytest.raises(UserError, match="has a line that is no answer; choose another file"):
        answers.earlier(path)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.jsonl", "", "has no questions"),
        ("a.jsonl", "{", "line 1 is not JSON"),
        ("a.jsonl", '{"answer": ["a"]}', "line 1: no field 'question' in"),
        ("a.jsonl", '{"question": "who"}', "line 1: no field 'answer' in"),
        ("a.jsonl", '{"question": "who", "answer": "a"}', "line 1: 'answer' is 'a'; it must be a list"),
        ("a.jsonl", '{"question": "who", "answer": []}', "line 1: it has no answer"),
        ("a.jsonl", '{"question": "who", "answer": {"aliases": []}}', "line 1: no field 'value' in"),
        ("a.jsonl", '{"question": "\\ud800", "answer": ["a"]}', "line 1: 'utf-8' codec can't encode"),
        (
            "a.json",
            "{}\n{}",
            "is no TriviaQA: Extra data: line 2 column 1 (char 3); a file of JSON lines must not end in",
        ),
        ("a.json", '{"Data": 3}', "is no TriviaQA: 'Data' is 3; it must be a list"),
        ("a.json", '{"Data": [3]}', "question 1: it is 3; it must be an object"),
        ("a.json", '{"Data": [{"Question": "Who?"}]}', "question 1: no field 'Answer' in"),
    ],
)
def test_a_bad_question_is_named_by_its_place(tmp_path, name, text, message):
    (tmp_path / name).write_text(text)
    with pytest.raises(UserError) as caught:
        read_questions(tmp_path / name)
    assert message in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["RUN"], "--tasks"),
        (["RUN", "--tasks", "missing"], "cannot read missing"),
        (["RUN", "--tasks", "FILE", "--shots", "1"], "--examples FILE and --shots N, with N 1 or more, go together"),
        (["RUN", "--tasks", "FILE", "--examples", "FILE"], "go together"),
        (["RUN", "--tasks", "FILE", "--examples", "FILE", "--shots", "-1"], "go together"),
        (["RUN", "--tasks", "FILE", "--examples", "FILE", "--shots", "2"], "has 1 questions; --shots is 2"),
        (["RUN", "--tasks", "FILE", "--max-bytes", "0"], "--max-bytes is 0; it must be 1 or more"),
        (["EMPTY", "--tasks", "FILE"], "holds no checkpoint"),
        (["RUN", "--tasks", "FILE", "--json", "NOWHERE"], "cannot write"),
    ],
)
def test_bad_input_is_one_clear_line(trained_run, tmp_path, arguments, message):
    (tmp_path / "file").write_text(json.dumps(NQ_OPEN))
    (tmp_path / "empty").mkdir()
    stand_for = {"RUN": trained_run, "FILE": tmp_path / "file", "EMPTY": tmp_path / "empty"}
    stand_for["NOWHERE"] = tmp_path / "no" / "file.json"
    with pytest.raises(UserError) as caught:
        evaluate.main(["answers", *(str(stand_for.get(word, word)) for word in arguments)])
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_command_prints_and_writes_the_same_numbers(trained_run, tmp_path, capsys):
    """The first question's answer is what the run writes, found by asking it before."""
    [found] = ask(load_model(trained_run, "cpu"), [question_of(NQ_OPEN)], [question_of(HUGGING_FACE)], 16).given
    right = {**NQ_OPEN, "answer": ["a rose", f"the {found}"]}
    (tmp_path / "tasks.jsonl").write_text(f"{json.dumps(right)}\n{json.dumps(NQ_OPEN)}\n")
    (tmp_path / "train.jsonl").write_text(json.dumps(HUGGING_FACE))
    examples = ["--examples", str(tmp_path / "train.jsonl"), "--shots", "1", "--max-bytes", "16"]
    program = ["answers", str(trained_run), "--tasks", str(tmp_path / "tasks.jsonl"), *examples]
    evaluate.main([*program, "--json", str(tmp_path / "out.json")])
    record = json.loads((tmp_path / "out.json").read_text())
    assert (record["questions"], record["correct"], record["exact_match"]) == (2, 1, 0.5)
    assert record["answers"] == [found] * 2 and record["right"] == [True, False]
    assert re.search(r"^exact_match +0\.5000  \(1 right\)$", capsys.readouterr().out, flags=re.MULTILINE)

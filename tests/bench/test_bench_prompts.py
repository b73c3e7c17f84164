"""Kinds of text that `bench decode --run` continues."""

import re

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from bytemtp.bench.prompts import BETWEEN, edited, prompts_of, reach_of
from bytemtp.common.errors import UserError
from bytemtp.common.settings import DataConfig

PROGRAM = b"def area(radius):\n    return 3 * radius\n\n\ndef main():\n    print(area(2), area(3))\n"


def replaced_by_hand(text, name):
    """Word by word."""
    return b"".join(b"new_" + word if word == name else word for word in re.split(rb"(\W+)", text))


def test_an_edit_replaces_a_name_that_comes_again():
    text = edited(PROGRAM, 40, seed=0)
    assert text == PROGRAM + BETWEEN + replaced_by_hand(PROGRAM, b"area")[:40]
    assert edited(PROGRAM, 1000, seed=0) == PROGRAM + BETWEEN + replaced_by_hand(PROGRAM, b"area")[: len(PROGRAM) // 2]


def test_the_seed_chooses_the_name():
    text = b"one two three " * 4
    outs = {edited(text, 20, seed) for seed in range(20)}
    assert outs == {text + BETWEEN + replaced_by_hand(text, name)[:20] for name in (b"one", b"two", b"three")}


@pytest.mark.parametrize(
    "text", [b"", b"word", b"if if if if if ", b"False or False or False", b"ab ab ab ab ab", b"\xff" * 99]
)
def test_no_edit_without_a_name_that_comes_again(text):
    assert edited(text, 20, seed=0) is None


@example(b"xx foobar foo foo foo", 6, 0)  # at 6 a word is cut, and what is left of it stands elsewhere
@given(st.text(alphabet="ab_ .\n", max_size=60).map(str.encode), st.integers(1, 80), st.integers(0, 5))
def test_an_edit_is_the_text_and_a_beginning_that_is_not_the_same(text, size, seed):
    out = edited(text, size, seed)
    if out is not None:
        beginning = out.removeprefix(text + BETWEEN)
        assert beginning != text[: len(beginning)] and len(beginning) == min(size, len(text) // 2)
        names = set(re.findall(rb"[a-z_]{3,}", text))
        assert beginning in {replaced_by_hand(text, name)[: len(beginning)] for name in names}


def test_prompts_of_files(tmp_path, capsys):
    (tmp_path / "a.py").write_bytes(PROGRAM * 60)
    (tmp_path / "b").write_bytes(b"nothing twice here")
    files, data = [str(tmp_path)], DataConfig()
    assert prompts_of("held-out", files, 5, 10, data, 0) == [PROGRAM[:10], b"nothing tw"]
    (text,) = prompts_of("edit", files, 5, 64, data, 0)
    assert text.startswith((PROGRAM * 60)[:2048] + BETWEEN) and len(text) == 2048 + len(BETWEEN) + 64
    assert "left out: 1 texts in which no name stands twice" in capsys.readouterr().err
    (text,) = prompts_of("edit", files, 1, 999, data, 512)
    assert len(text) == 256 + len(BETWEEN) + 128
    with pytest.raises(UserError, match="looks back on 100 bytes, but kind 'edit' needs 256"):
        prompts_of("edit", files, 1, 64, data, 100)
    with pytest.raises(UserError, match="in none of 1 texts stands a name twice"):
        prompts_of("edit", [str(tmp_path / "b")], 1, 64, data, 0)


def test_random_prompts_depend_on_the_seed_alone():
    first = prompts_of("random", (), 3, 400, DataConfig(), 0)
    assert first == prompts_of("random", (), 3, 400, DataConfig(), 0)
    assert first != prompts_of("random", (), 3, 400, DataConfig(), 0, seed=1)
    assert [len(text) for text in first] == [400] * 3 and len(set(b"".join(first))) > 200


def test_how_far_all_runs_look_back(trained_run, one_head_run, tmp_path):
    assert reach_of([trained_run, one_head_run]) == 32
    with pytest.raises(UserError, match="is not a run"):
        reach_of([tmp_path])

"""Names and stories: what is held out is new, every mention is found, and scores count."""

import json
import random
import re
from dataclasses import replace

import pytest
import torch
import zstandard
from hypothesis import given
from hypothesis import strategies as st

import bytemtp
from bytemtp.common.errors import UserError
from bytemtp.common.vocab import EOT
from bytemtp.model.checkpoint import step_folders
from experiments.documents import written_once
from experiments.grid import cells_of
from experiments.induction.__main__ import EXPERIMENT, corpus, heldout_of
from experiments.induction.names import CONSONANTS, VOWELS, draw_names, is_heldout
from experiments.induction.report import after
from experiments.induction.scoring import expected, mentions, scores
from experiments.induction.stories import ENDS, EVENTS, OPENINGS, WORDS, Story, stories
from experiments.induction.tinystories import characters, read_stories, renamed, renamed_stories, split
from tests.experiments.small_cells import SHAPE

NAME = re.compile(f"\\b[{CONSONANTS.upper()}][{VOWELS}][{CONSONANTS}][{VOWELS}]\\b")


@given(st.integers(0, 999), st.integers(0, 9), st.booleans())
def test_names_are_two_parts_and_the_first_tells_the_second(seed, count, heldout):
    names = draw_names(random.Random(seed), count, heldout)
    assert len({name[:2] for name in names}) == len(names) == count
    for name in names:
        assert NAME.fullmatch(name)
        assert is_heldout(name) == heldout


def test_a_tenth_of_the_names_is_held_out():
    parts = [consonant + vowel for consonant in CONSONANTS for vowel in VOWELS]
    every = [first.capitalize() + second for first in parts for second in parts]
    assert 0.09 < sum(map(is_heldout, every)) / len(every) < 0.11


def test_stories_depend_on_the_seed_alone():
    assert list(stories(5, 1, True)) == list(stories(9, 1, True))[:5] != list(stories(5, 2, True))


def test_names_of_held_out_stories_are_in_no_other():
    trained, held = (list(stories(2000, 0, heldout)) for heldout in (False, True))
    of_trained, of_held = ({name for story in some for name in story.names} for some in (trained, held))
    assert len(of_trained) > 1500 and len(of_held) > 200 and not of_trained & of_held
    assert {name for story in trained for name in NAME.findall(story.text)} <= of_trained


def test_stories_say_their_own_names_again_and_again():
    told = list(stories(300, 0, True))
    for story in told:
        text = re.sub("|".join(story.names), "", story.text)
        assert "{" not in text and "}" not in text and len(story.text) < 600
    found = [is_first for story in told for _, is_first in mentions(story.text.encode(), story.names)]
    assert found.count(False) > 3 * len(told)
    assert len({story.text for story in told}) == len(told)


def test_templates_have_no_word_that_a_name_could_be():
    """Names are then found by their letters alone."""
    assert not NAME.search(" ".join([*WORDS.values(), *OPENINGS, *EVENTS, *ENDS]))


STORY = b"Dobi saw Kafe. Kafe saw Dobi and Dobis."


def test_mentions_are_found_in_order():
    assert mentions(STORY, ["Kafe", "Dobi"]) == [(0, True), (9, True), (15, False), (24, False)]
    assert mentions(STORY, []) == []


class Knowing:
    """A model that expects the bytes at `known` places of each text, and 0 elsewhere; every byte costs one bit."""

    device = torch.device("cpu")

    def __init__(self, texts, known):
        self.texts, self.known = texts, known

    def __call__(self, ids):
        assert (ids[:, 0] == EOT).all()
        logits = torch.full((2, *ids.shape, 264), -torch.inf)
        logits[0] = -1.0
        for row, text in enumerate(self.texts):
            assert bytes(ids[row, 1 : len(text)].tolist()) == text[:-1]
            for place, byte in enumerate(text):
                logits[0, row, place] = -torch.inf
                logits[0, row, place, byte] = 0.0
                logits[0, row, place, 0] = -1e-6 if place in self.known[row] else 1e-6
        return logits


def test_scores_of_a_hand_made_story():
    """Of the two later mentions one has its whole second part, the other the last byte alone."""
    story = Story(STORY.decode(), ("Kafe", "Dobi"))
    other = Story("No name.", ())
    known = [{2, 3, 11, 17, 18, 27, 33}, set()]
    found = scores(Knowing([STORY, other.text.encode()], known), [story, other])
    assert found["second"] == pytest.approx(1 / 2) and found["byte"] == pytest.approx(3 / 4)
    assert found["start"] == pytest.approx(1 / 2) and found["new"] == pytest.approx(1 / 2)
    assert found["bpb"] == pytest.approx(1, abs=1e-4)


def test_a_story_is_scored_alike_alone_and_among_others(trained_run, monkeypatch):
    model, told = bytemtp.load(trained_run), list(stories(5, 0, True))
    texts = [story.text.encode() for story in told]
    together, bits = expected(model, texts)
    for row, text in enumerate(texts):
        alone, its_bits = expected(model, [text])
        assert torch.equal(alone[0], together[row, : len(text)])
        assert torch.allclose(its_bits[0], bits[row, : len(text)], atol=1e-4)
        assert not together[row, len(text) :].any() and not bits[row, len(text) :].any()
    before = scores(model, told)
    monkeypatch.setattr("experiments.induction.scoring.BATCH", 2)
    assert scores(model, told) == pytest.approx(before)


FILE = """Once there was a girl named Lily. Lily saw her mom.
"Hi, Mom," said Lily. Tom smiled.
<|endoftext|>

One day Ben met Sue. He ran. "Ben is fast," Sue said.

<|endoftext|>
<|endoftext|>
A dog barked at Max.
"""


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "TinyStories-valid.txt"
    path.write_text(FILE)
    return path


def test_files_are_split_into_stories(file):
    texts = list(read_stories(file))
    assert [text[:8] for text in texts] == ["Once the", "One day ", "A dog ba"] and texts[2] == "A dog barked at Max."
    assert "\nTom" not in texts[0] and '"\n' not in texts[0] and texts[0].count("\n") == 1
    assert list(split([])) == []


def test_characters_are_words_with_a_capital_that_are_never_small():
    assert characters("Lily saw Mom, and Tom saw the Man. Sue sat.", {"mom", "man"}) == ["Tom"]


def test_characters_get_held_out_names(file):
    first, second = renamed_stories(file, 2, seed=0)
    assert len(first.names) == 1 and is_heldout(first.names[0]) and first.text.count(first.names[0]) == 3
    assert "Lily" not in first.text and '"Hi, Mom,"' in first.text
    ben, sue = second.names
    assert second.text == f'One day {ben} met {sue}. He ran. "{ben} is fast," {sue} said.'
    assert renamed_stories(file, 2, seed=0) == [first, second]
    assert renamed_stories(file, 2, seed=1) != [first, second]


def test_only_whole_words_are_renamed():
    assert renamed("Ben and Benny", ["Ben"], random.Random(0)).text.endswith(" and Benny")


def test_no_more_characters_are_renamed_than_there_are_names():
    words = [f"the X{letter} saw" for letter in "abcdefghijklmnopqrstuvwxyz"]
    assert characters(" ".join(words), set()) == [f"X{letter}" for letter in "abcdefgh"]


def test_too_few_stories_are_told(file):
    with pytest.raises(UserError, match=r"has 2 stories with a name that comes twice; 3 are to be scored"):
        renamed_stories(file, 3, seed=0)
    with pytest.raises(UserError, match="cannot read stories from nowhere"):
        list(read_stories("nowhere"))


def test_a_corpus_is_written_once(tmp_path):
    path = tmp_path / "a" / "b.jsonl.zst"
    assert written_once(path, iter(["one\n", "zwei ö"])) == path
    assert written_once(path, iter(["other"])) == path
    assert documents(path) == ["one\n", "zwei ö"]
    assert [one.name for one in path.parent.iterdir()] == [path.name]


def documents(path):
    with zstandard.open(path, "rt", encoding="utf-8") as file:
        return [json.loads(line)["text"] for line in file]


def test_a_corpus_that_breaks_off_leaves_no_file(tmp_path):
    def texts():
        yield "one"
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        written_once(tmp_path / "a.jsonl.zst", texts())
    assert not (tmp_path / "a.jsonl.zst").exists()


def cell_of(name, **changes):
    (cell,) = cells_of(EXPERIMENT, "cpu", [0], [name])
    return replace(cell, settings=cell.settings | changes)


def test_a_preset_may_take_its_stories_from_files(file, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    cell = cell_of(next(iter(EXPERIMENT.presets()["cpu"]["cells"])), **{"story.heldout": 2, "story.count": 3})
    from_files = replace(cell, options={"train": str(file), "heldout": str(file)})
    assert documents(corpus(from_files)) == list(read_stories(file))
    assert heldout_of(from_files) == renamed_stories(file, 2, 1)
    assert documents(corpus(cell)) == [story.text for story in stories(3, 0, heldout=False)]
    assert heldout_of(cell) == list(stories(2, 1, heldout=True))


def test_models_of_a_size_differ_in_their_heads_alone():
    for preset in EXPERIMENT.presets():
        kinds = {}
        for cell in cells_of(EXPERIMENT, preset, [0]):
            size, heads, *weights = cell.name.split(", ")
            own = {"model.n_future", "train.head_weights", "train.head_schedule"}
            rest = {name: value for name, value in cell.settings.items() if name not in own}
            assert kinds.setdefault(size, rest) == rest
            assert cell.settings["model.n_future"] == int(heads.removeprefix("n=")), cell.name
            called = cell.settings.get("train.head_schedule") or cell.settings.get("train.head_weights")
            assert weights == ([] if heads == "n=1" else [called]), cell.name
            wanted = float(size[:-1]) * {"M": 1, "B": 1000}[size[-1]]
            assert millions(cell.settings) == pytest.approx(wanted, rel=0.3)


def millions(settings):
    """Parameters but for embedding and heads, as the paper counts them."""
    dim = settings["model.dim"]
    return settings["model.layers"] * (4 * dim * dim + 3 * dim * settings["model.ffn_dim"]) / 1e6


def test_figures_on_the_way_are_those_of_the_first_checkpoint_that_is_far_enough():
    way = [{"step": step, "second": step / 10} for step in (2, 4, 6, 8, 9)]
    (line,) = after(0.5, [{"steps": 9, "way": way, "second": 0.9}])
    assert line["second"] == 0.6
    assert after(1.0, [{"steps": 9, "way": way}])[0]["second"] == 0.9


SMALL = SHAPE | {"train.steps": 4, "train.checkpoint_every": 1, "story.count": 30, "story.heldout": 5}


def test_a_cell_is_trained_scored_and_shown(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = list(EXPERIMENT.presets()["cpu"]["cells"])
    lines = []
    for cell in (cell_of(names[0], **SMALL), cell_of(names[1], **SMALL)):
        lines.append({"key": cell.key} | EXPERIMENT.score(cell))
        assert len(step_folders(cell.folder)) == 4
    assert json.loads(json.dumps(lines)) == lines
    for line in lines:
        assert [one["step"] for one in line["way"]] == [1, 2, 3, 4]
        assert line["way"][-1] == {name: line[name] for name in line["way"][-1]} and line["steps"] == 4
    shown = EXPERIMENT.table(lines)
    assert shown.count(f"| {names[1]} minus {names[0]} ") == 2 and "| half  | 1 " in shown
    assert len(EXPERIMENT.draw(lines).axes) == 1

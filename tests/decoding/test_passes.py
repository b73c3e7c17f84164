"""What is counted about the passes of a text."""

import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bytemtp.common.settings import ModelConfig
from bytemtp.decoding.generate import generate
from bytemtp.decoding.passes import Pass, pass_stats
from bytemtp.decoding.row import Row
from bytemtp.decoding.sampling import Rule
from bytemtp.model.model import ByteMTP

TINY = ModelConfig(dim=16, layers=4, attention_heads=2, kv_heads=1, ffn_dim=24, n_future=4)


def chain_pass(length, accepted, source="heads"):
    return Pass(source, length, length, accepted)


def test_the_numbers_are_those_of_vllm():
    """The example of its documentation (Per-Request Acceptance Metrics): 43 steps of three drafts."""
    passes = [chain_pass(0, 0), *39 * [chain_pass(3, 0)], chain_pass(3, 1), *3 * [chain_pass(3, 3)]]
    theirs = {
        "mean_acceptance_length": 1.2325581395348837,
        "draft_acceptance_rate": 0.07751937984496124,
        "acceptance_histogram": [39, 1, 0, 3],
        "acceptance_histogram_by_draft_length": {"3": [39, 1, 0, 3]},
        "num_spec_steps": 43,
        "num_accepted_draft_tokens": 10,
        "num_draft_tokens": 129,
        "num_spec_tokens": 3,
    }
    ours = json.loads(json.dumps(pass_stats(passes)))
    assert {name: ours[name] for name in theirs} == theirs
    assert ours["accepted"] == {"0": 40, "1": 1, "3": 3}, "that of all passes, also of one without drafts"


def test_numbers_of_unlike_passes():
    tree = Pass("heads", drafts=6, depth=2, accepted=2)
    stats = pass_stats([tree, chain_pass(1, 0), chain_pass(4, 3, "copies"), chain_pass(4, 1, "copies")])
    assert stats["acceptance_histogram_by_draft_length"] == {1: [1, 0], 2: [0, 0, 1], 4: [0, 1, 0, 1, 0]}
    assert stats["acceptance_histogram"] == [1, 1, 1, 1, 0]
    assert stats["accept_rate_by_position"] == [3 / 4, 2 / 3, 1 / 2, 0]
    assert (stats["num_draft_tokens"], stats["num_spec_tokens"]) == (15, 4)
    assert stats["sources"] == {
        "copies": {"steps": 2, "draft_tokens": 8, "accepted_draft_tokens": 4},
        "heads": {"steps": 2, "draft_tokens": 7, "accepted_draft_tokens": 2},
    }


@pytest.mark.parametrize("passes", [[], [chain_pass(0, 0)]])
def test_numbers_without_drafts(passes):
    stats = pass_stats(passes)
    assert (stats["mean_acceptance_length"], stats["draft_acceptance_rate"]) == (1, 0)
    assert stats["acceptance_histogram"] == [0]
    assert (stats["accept_rate_by_position"], stats["acceptance_histogram_by_draft_length"], stats["sources"]) == (
        [],
        {},
        {},
    )


LENGTHS = st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4), st.sampled_from(["heads", "copies"])), max_size=12)


@given(lengths=LENGTHS)
def test_a_row_counts_its_passes(lengths):
    row = Row(b"", 0, 10, Rule(), 0, (), utf8=False)
    passes = [chain_pass(length, min(length, accepted), source) for length, accepted, source in lengths]
    for one in passes:
        row.count_pass(range(1, one.depth + 1), one.accepted, one.source)
    stats = row.stats(1.0)
    assert stats["forwards"] == len(passes)
    assert pass_stats(passes).items() <= stats.items()


def test_a_row_counts_trees_by_their_depth():
    row = Row(b"", 0, 10, Rule(), 0, (), utf8=False)
    row.count_pass([1, 1, 2, 1, 2], 1)
    stats = row.stats(1.0)
    assert stats["acceptance_histogram_by_draft_length"] == {2: [0, 1, 0]}
    assert stats["sources"] == {"heads": {"steps": 1, "draft_tokens": 5, "accepted_draft_tokens": 1}}


@pytest.mark.parametrize("mode", ["ar", "speculative", "tree"])
def test_accepted_drafts_are_those_of_the_text(mode):
    """Each byte is a draft that was accepted, or the one that a pass gives itself."""
    model = ByteMTP(replace(TINY, topology="parallel"), 0).eval()
    out = generate(model, b"a", 40, mode=mode, temperature=3.0, engine="torch")
    stats = out.stats
    assert stats["stopped_by"] == "max_bytes", "or the end counts, too"
    assert stats["num_accepted_draft_tokens"] == sum(origin > 0 for origin in out.origins)
    assert stats["num_spec_steps"] == (0 if mode == "ar" else sum(stats["acceptance_histogram"]))
    assert stats["num_spec_tokens"] == (0 if mode == "ar" else 3)
    assert (stats["num_accepted_draft_tokens"] > 0) == (mode != "ar"), "or this tests nothing"

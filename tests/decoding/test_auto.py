"""Modes "copy" and "auto": nothing but the speed changes, and by the table of costs the choice is hardly ever wrong."""

import copy
import json
import math
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import islice, product

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_loop import ENGINES, TOPOLOGIES, model_for
from test_recorded import traced

from bytemtp.common.errors import UserError
from bytemtp.common.vocab import EOT
from bytemtp.decoding import costs as costs_module
from bytemtp.decoding.chains import AutoChain, CopiedChain
from bytemtp.decoding.chooser import FIRST_REST, LONGEST_REST, Chooser, Costs
from bytemtp.decoding.copies import Copies
from bytemtp.decoding.corpus_index import CorpusIndex, write_index
from bytemtp.decoding.costs import costs_of
from bytemtp.decoding.engines import recorded
from bytemtp.decoding.generate import Options, generate, generate_batch, generate_stream
from bytemtp.decoding.loop import COPIED
from bytemtp.decoding.sampling import Rule
from bytemtp.index import main
from bytemtp.model.model import ByteMTP

FLAT = Costs((1e-3,) * 16, heads=0.0)
"""Drafts cost nothing."""
STEEP = Costs(tuple(1e-3 * (1 + 0.35 * ids) for ids in range(16)), heads=1e-4)
"""A pass over four ids costs as much as two passes."""
DEAR = Costs(tuple(1e-3 * ids for ids in range(1, 17)), heads=1e-4)
"""A pass over two ids costs as much as two passes."""
MIDDLE = Costs(tuple(1e-3 * (1 + 0.06 * ids) for ids in range(16)), heads=1e-4)
COSTS = {"flat": FLAT, "steep": STEEP, "middle": MIDDLE, "dear": DEAR}


@pytest.fixture(scope="module", autouse=True)
def table():
    """Its "now" stands in for the costs of this machine."""
    chosen = {"now": MIDDLE}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("bytemtp.decoding.generate.costs_of", lambda *_, **__: chosen["now"])
        yield chosen


REPEATING = st.lists(st.sampled_from([b"abcabd", b"x = ", b"\n", b"\xff"]), max_size=8).map(b"".join)


@settings(max_examples=60)
@given(
    topology=st.sampled_from(TOPOLOGIES),
    prompt=REPEATING,
    max_bytes=st.integers(0, 40),
    heads=st.integers(0, 4),
    mode=st.sampled_from(["copy", "auto"]),
    costs=st.sampled_from(sorted(COSTS)),
    window=st.sampled_from([0, 6]),
    engine=st.sampled_from(sorted(ENGINES)),
)
def test_copies_write_the_bytes_of_plain_greedy_decoding(
    table, topology, prompt, max_bytes, heads, mode, costs, window, engine
):
    table["now"] = COSTS[costs]
    model = model_for(topology, window=window)
    plain = generate(model, prompt, max_bytes, engine=engine)
    fast = generate(model, prompt, max_bytes, mode=mode, heads=heads, engine=engine)
    assert (fast.data, fast.stats["stopped_by"]) == (plain.data, plain.stats["stopped_by"])
    assert fast.stats["forwards"] <= plain.stats["forwards"]


@pytest.mark.parametrize("mode", ["copy", "auto", "speculative"])
def test_more_bytes_than_c_counts(table, mode):
    """Beyond an int64, which ctypes would cut them to without a word."""
    table["now"] = COSTS[sorted(COSTS)[0]]
    model, prompt = model_for("replicated", window=6), b"abcabdabc"
    without_end = generate_stream(model, prompt, 10**19, mode=mode)
    found = b"".join(islice(without_end, 5))
    assert found and generate(model, prompt, len(found)).data == found


def test_logits_that_are_not_finite_are_told():
    """They gave bytes of 0, or a ValueError about a byte of 263."""
    model = copy.deepcopy(model_for("replicated"))
    with torch.no_grad():
        model.norm.weight.fill_(torch.nan)
    for temperature, mode, engine in product([0.0, 1.0], ["ar", "speculative"], ["native", "torch"]):
        with pytest.raises(UserError, match="logits are not finite: its weights are damaged; use another checkpoint"):
            generate(model, b"a", 4, mode=mode, temperature=temperature, engine=engine)


@pytest.mark.parametrize("engine", [*sorted(ENGINES), "recorded"])
@pytest.mark.parametrize("mode", ["ar", "speculative", "auto"])
def test_logits_that_are_not_finite_later_on_are_told(engine, mode, monkeypatch):
    """Half of the bytes have no embedding: what they are read for comes in passes that Python does not see."""
    monkeypatch.setattr(recorded, "record_pass", traced)
    model = copy.deepcopy(model_for("replicated"))
    with torch.no_grad():
        model.embed.weight[:128] = torch.nan
    for seed in range(4):
        with pytest.raises(UserError, match="logits are not finite"):
            generate(model, b"\xff", 400, mode=mode, temperature=1.0, seed=seed, engine=engine)


@pytest.mark.parametrize("engine", [*sorted(ENGINES), "recorded"])
@pytest.mark.parametrize("damaged", ["a head", "what follows a byte"])
def test_drafts_of_a_damaged_head_are_told(engine, damaged, monkeypatch):
    """A law of nan draws an id that is no byte, which every chain accepted."""
    monkeypatch.setattr(recorded, "record_pass", traced)
    model = copy.deepcopy(model_for("replicated", transitions=True))
    with torch.no_grad():
        if damaged == "a head":
            model.unembed[1].weight.fill_(torch.nan)
        else:
            model.transitions[0, 1::2] = torch.nan
    for seed in range(4):
        with pytest.raises(UserError, match="logits are not finite"):
            generate(model, b"a", 400, mode="speculative", temperature=1.0, seed=seed, engine=engine)


@settings(max_examples=20)
@given(
    prompts=st.lists(REPEATING, min_size=1, max_size=4), temperature=st.sampled_from([0.0, 0.8]), seed=st.integers(0, 9)
)
def test_a_seed_draws_the_same_text_again(prompts, temperature, seed):
    options = dict(mode="auto", temperature=temperature, seed=seed)
    first, again = (generate_batch(model_for("linear"), prompts, 24, **options) for _ in range(2))
    assert [out.data for out in first] == [out.data for out in again]


def copied_chain(row):
    return CopiedChain(row, Copies(), COPIED)


def auto_chain(row):
    return AutoChain(row, Chooser(Copies(), FLAT, 0, may_rest=True), COPIED)


@pytest.mark.parametrize("chain", [copied_chain, auto_chain])
def test_nothing_is_drafted_for_a_text_that_has_ended(chain):
    """While others of its batch go on: such drafts were verified once, to no end."""
    row = Options().row(b"abcabc", 0, 30)
    tree = chain(row)
    tree.begin()
    assert tree.drafts
    row.stopped_by = "stop"
    tree.begin()
    assert not tree.drafts and not tree.follows()


def test_an_index_is_copied_from(table, tmp_path):
    """What the model writes, in a file: the whole text then comes in pieces of COPIED bytes."""
    table["now"] = MIDDLE
    model = model_for("parallel", n_future=1)
    text = generate(model, b"abc", 120).data
    (tmp_path / "file.txt").write_bytes(b"abc" + text)
    main([str(tmp_path / "file.txt"), "--out", str(tmp_path / "an.index")])
    for mode in ("copy", "auto"):
        out = generate(model, b"abc", 120, mode=mode, index=str(tmp_path / "an.index"))
        assert out.data == text and out.stats["sources"].keys() == {"copies"}
        assert out.stats["bytes_per_forward"] > COPIED / 2


def test_auto_copies_as_many_bytes_as_costs_are_known_of(table):
    table["now"] = Costs((1e-3,) * 32, heads=0.0)
    model = model_for("linear")
    most = {mode: generate(model, b"ab" * 40, 100, mode=mode).stats["num_spec_tokens"] for mode in ("copy", "auto")}
    assert most == {"copy": COPIED, "auto": 31}


# ---- the choice


def paid(out, costs, plainly):
    """Time by the table of all passes, over that of plain decoding."""
    by_length = out.stats["acceptance_histogram_by_draft_length"]
    with_drafts = {drafts: sum(histogram) for drafts, histogram in by_length.items()}
    seconds = sum(times * costs.extra(drafts) for drafts, times in with_drafts.items())
    return (seconds + out.stats["forwards"] * costs.passes[0]) / (plainly * costs.passes[0])


@pytest.mark.parametrize("topology", TOPOLOGIES)
def test_where_drafts_are_hopeless_hardly_anything_is_lost(table, topology):
    """Copies of bytes drawn evenly are never right, and the heads of this model hardly ever."""
    table["now"] = STEEP
    model = model_for(topology, n_future=4, dim=48)
    out = generate(model, bytes(range(256)), 400, mode="auto", temperature=50.0)
    assert paid(out, STEEP, 400) < 1.03


def test_where_a_draft_costs_a_pass_decoding_is_plain(table):
    table["now"] = DEAR
    out = generate(model_for("replicated"), b"abab" * 9, 40, mode="auto")
    assert out.stats["num_draft_tokens"] == 0 and out.stats["mode"] == "auto"


@pytest.mark.parametrize("unit", [1e-6, 1.0])
@pytest.mark.parametrize("depth", [3, 7])
@pytest.mark.parametrize("slope", [0.05, 0.3])
@pytest.mark.parametrize("chance", [0.2, 0.5, 0.8, 0.95])
@pytest.mark.parametrize("seed", [0])
def test_a_draft_that_is_right_by_chance_is_made_as_often_as_pays(chance, slope, depth, unit, seed):
    """Against all fixed numbers of drafts, by the table: of 2,000 bytes the choice is within 12 % of the best.

    unit: of time.  Where a pass took no whole second, no draft was ever made once.
    """
    costs = Costs(tuple(unit * (1 + slope * ids) for ids in range(16)), heads=0.0)
    chooser, random = Chooser(Copies(), costs, depth, may_rest=True), np.random.default_rng(seed)
    written = spent = 0.0
    accepted = 0
    while written < 2000:
        chooser.begin(accepted, b"", 0)
        drafts = chooser.worth(1, np.full((depth, 1), chance), are_logits=False) if chooser.asks else 0
        right = random.random(drafts) < chance
        accepted = drafts if right.all() else int(right.argmin())
        written, spent = written + accepted + 1, spent + 1 + slope * drafts
    best = max(sum(chance**d for d in range(fixed + 1)) / (1 + slope * fixed) for fixed in range(depth + 1))
    assert written / spent > 0.88 * best


def after_pass(chooser, accepted):
    """A pass whose heads, if they are asked, are sure of three drafts; returns whether they are."""
    chooser.begin(accepted if chooser.asks else 0, b"", 0)
    if chooser.asks:
        chooser.worth(1, np.ones((3, 1)), are_logits=False)
    return chooser.asks


def test_heads_that_rest_are_tried_again_and_return():
    chooser = Chooser(Copies(), MIDDLE, 3, may_rest=True)
    while after_pass(chooser, 0):
        pass
    asked = [False, *(after_pass(chooser, 0) for _ in range(4 * LONGEST_REST))]
    rests = [len(rest) for rest in "".join("x" if one else "." for one in asked).split("x")]
    assert rests[0] == FIRST_REST and rests[1] == 2 * FIRST_REST and max(rests) == LONGEST_REST
    while not after_pass(chooser, 3):
        pass
    assert all(after_pass(chooser, 3) for _ in range(100))


def test_one_lucky_try_is_not_believed_for_long():
    """Each once brought back the trust of the start, four bytes, and was often the only one."""
    chooser = Chooser(Copies(), STEEP, 3, may_rest=True)
    while after_pass(chooser, 0):
        pass
    while not after_pass(chooser, 0):
        pass
    passes = 0
    accepted = 2  # three drafts cost one byte or little more
    while after_pass(chooser, accepted):
        passes, accepted = passes + 1, 0
    assert passes <= 2


def test_heads_with_caches_are_given_up_for_good():
    chooser = Chooser(Copies(), STEEP, 3, may_rest=False)
    assert chooser.follows
    while after_pass(chooser, 0):
        assert chooser.follows
    for _ in range(1000):
        assert not after_pass(chooser, 0) and not chooser.follows


def test_long_matches_are_copied_and_short_ones_that_were_wrong_are_not():
    line = bytes(range(100, 140))
    chooser = Chooser(Copies(), STEEP, 0, may_rest=True)
    copied = chooser.begin(0, line + line, COPIED)
    assert line.startswith(copied) and len(copied) > 8
    before = chooser._number(4, COPIED)
    for n in range(50):  # what follows `ABCD` is another byte each time
        chooser.begin(0, bytes([n]) + b"ABCD", COPIED)
    assert chooser.match == 4
    assert chooser._number(4, COPIED) == 0 < before < chooser._number(32, COPIED)


def test_more_heads_than_passes_were_timed_for(table):
    table["now"] = FLAT
    model = model_for("linear", n_future=20)
    assert generate(model, b"ab", 40, mode="auto").data == generate(model, b"ab", 40).data


# ---- the table


def test_those_that_begin_together_measure_once(tmp_path, monkeypatch):
    """Beside each other they measured each other, and the file kept the table of the last."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    measured = []

    def slow(*_, **__):
        measured.append(time.sleep(0.3))
        return FLAT

    monkeypatch.setattr(costs_module, "measure", slow)
    monkeypatch.setattr(costs_module, "DRAFTS", range(FLAT.most + 1))
    model = model_for("parallel")
    with ThreadPoolExecutor(3) as pool:
        found = list(pool.map(lambda _: costs_of(model, 1, "auto"), range(3)))
    assert found == [FLAT] * 3 and len(measured) == 1


def test_costs_are_measured_once_and_damage_is_mended(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    measured = []
    real = costs_module.measure
    monkeypatch.setattr(costs_module, "measure", lambda *args, **kw: measured.append(real(*args, **kw)) or measured[-1])
    model = model_for("parallel")
    first = costs_of(model, 1, "auto")
    assert first.most == costs_module.DRAFTS[-1] and all(0 < cost < math.inf for cost in first.passes)
    assert list(first.passes) == sorted(first.passes) and first.heads > 0
    assert costs_of(model, 1, "auto") == first and len(measured) == 1
    costs_of(model, 2, "auto")
    costs_of(model_for("linear"), 1, "auto")
    costs_of(model, 1, "torch")
    costs_of(model, 1, "auto", greedy=False)
    write_index(tmp_path / "index", [b"abcabc"])
    costs_of(model, 1, "auto", index=CorpusIndex(tmp_path / "index"))
    assert len(measured) == 6
    zeros = {"passes": [0.0] * len(first.passes), "heads": 0.0, "head": 0.0, "look": 0.0}
    for times, damaged in enumerate(("{", json.dumps(zeros), json.dumps(zeros | {"passes": [1.0]})), 7):
        for file in (tmp_path / "bytemtp").glob("pass-costs-*.json"):
            file.write_text(damaged)
        assert costs_of(model, 1, "auto") == measured[-1] and len(measured) == times


def test_time_that_advances_by_ticks_is_not_believed(monkeypatch):
    """Some systems count a thread's time in hundredths of a second: all passes cost nothing, and that was kept."""
    monkeypatch.setattr(costs_module.time, "thread_time", lambda: 0.0)
    assert min(costs_module.measure(model_for("replicated"), 1, "auto", greedy=True).passes) > 0


def test_passes_are_timed_in_texts_that_do_not_end():
    row = costs_module.Endless(b"", 0, 9, Rule(), 0, (), False)
    row.append(EOT, 0)
    assert not row.stopped_by and row.data == b"\0"


def test_no_costs_are_measured_where_nothing_is_chosen(monkeypatch):
    monkeypatch.setattr("bytemtp.decoding.generate.costs_of", None)
    for mode in ("ar", "speculative", "tree", "copy"):
        options = Options(mode=mode)
        options.loop(model_for("linear"), [options.row(b"a", 0, 4)]).run()


def test_what_is_measured_is_told_apart(monkeypatch):
    """Passes, a look at the text, asking the heads in vain, and taking drafts from them."""

    def seconds(model, rows, engine, kinds, *, greedy):
        asked, taken = np.array([(bool(kind.shape), 0 if kind.costs else len(kind.shape)) for kind in kinds]).T
        copied = np.array([0 if kind.costs else kind.copied for kind in kinds])
        looked = np.array([kind.costs is not None for kind in kinds])
        return rows * (10 + (copied + taken) + 1 * looked + 3 * asked + 2.0 * taken)

    monkeypatch.setattr(costs_module, "seconds_by_kind", seconds)
    eight = model_for("replicated")
    one = ByteMTP(replace(eight.config, n_future=1))
    for model, by_heads in ((eight, (3.0, 2.0)), (one, (0.0, 0.0))):
        costs = costs_module.measure(model, 4, "native", greedy=True)
        assert costs.passes == tuple(range(10, 42))
        assert (costs.heads, costs.head, costs.look) == (*by_heads, 1.0)

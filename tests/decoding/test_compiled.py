"""CompiledLoop: passes that follow one another in C++ decide, draft and count what those of VerifyLoop do."""

import time
from dataclasses import replace
from functools import cache
from random import Random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bytemtp.common.settings import ModelConfig
from bytemtp.common.vocab import EOT
from bytemtp.decoding import compiled, verdicts
from bytemtp.decoding.chooser import Costs
from bytemtp.decoding.compiled import CompiledLoop, DrawnAhead, can_be_compiled
from bytemtp.decoding.engines.native.engine import NativeEngine
from bytemtp.decoding.generate import Options, generate, generate_stream
from bytemtp.decoding.loop import Drafting, VerifyLoop
from bytemtp.decoding.loops import loop_kind
from bytemtp.decoding.tree import chain
from bytemtp.decoding.verdicts import MARGIN
from bytemtp.model.model import ByteMTP

verify = NativeEngine.verify
TINY = ModelConfig(dim=32, layers=4, attention_heads=2, ffn_dim=48, n_future=4, topology="replicated")
COSTS = Costs([1.0 + 0.05 * drafts for drafts in range(12)], heads=0.1, head=0.02, look=0.01)
FREE = Costs([1.0] * 12, heads=0.0)
"""Heads never give up by these: a layer that they share goes on reading while bytes are copied."""
DRAFTINGS = {
    "ar": Drafting(),
    "speculative": Drafting(chain(3)),
    "copy": Drafting(copied=5),
    "auto": Drafting(chain(3), copied=11, costs=COSTS),
    "auto for nothing": Drafting(chain(3), copied=11, costs=FREE),
    "auto without heads": Drafting(copied=11, costs=COSTS),
}


@cache
def model_for(topology: str, seed: int, ends: float, dtype: torch.dtype = torch.float32) -> ByteMTP:
    """Sure of itself, so that texts repeat themselves and drafts are right; now and then a text ends.

    A + behind the topology stands for transitions.
    """
    config = replace(TINY, topology=topology.rstrip("+"), transitions=topology.endswith("+"))
    model = ByteMTP(config, seed).eval()
    with torch.no_grad():
        if model.transitions is not None:
            torch.nn.init.normal_(model.transitions, std=0.5, generator=torch.Generator().manual_seed(seed))
        for number, unembed in enumerate(model.unembed):
            unembed.weight.copy_(model.unembed[0].weight * (1 if number else 6))
            unembed.weight[EOT] *= 1 if number else ends
    model.use(dtype=dtype)
    return model


@settings(max_examples=150)
@given(
    kind=st.sampled_from(sorted(DRAFTINGS)),
    topology=st.sampled_from(["replicated", "replicated+", "branched", "branched+", "parallel"]),
    seed=st.integers(0, 3),
    ends=st.sampled_from([0.1, 1.0, 2.0]),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.int8]),
    prompts=st.lists(st.binary(max_size=20), min_size=1, max_size=4),
    size=st.integers(0, 90),
    slots=st.integers(0, 2),
    temperature=st.sampled_from([0.0, 0.4, 1.3]),
    stop=st.sampled_from([(), (b"a",), (b"\x80\x81", b"e")]),
    longest=st.sampled_from([1, 3, 32]),
    margin=st.sampled_from([MARGIN, 0.02]),
    reach=st.sampled_from([0, 11]),
)
def test_everything_is_as_by_the_loop_in_python(
    kind, topology, seed, ends, dtype, prompts, size, slots, temperature, stop, longest, margin, reach
):
    """Rows that wait, stop early, share prompts, draw; with the wide margin many passes end in a near tie."""
    drafting = DRAFTINGS["copy" if topology == "parallel" else kind]
    model = model_for(topology, seed, ends, dtype)
    chosen = Options(temperature=temperature, seed=seed, stop=stop)
    model.trained_length = reach
    outcomes = []
    with pytest.MonkeyPatch.context() as patch:
        for module in (compiled, verdicts):
            patch.setattr(module, "MARGIN", margin)
        patch.setattr(compiled, "LONGEST", longest)
        patch.setattr(compiled, "SHORT", 10.0)
        for loop in (VerifyLoop, CompiledLoop):
            rows = [chosen.row(prompt, number, size) for number, prompt in enumerate(prompts)]
            assert can_be_compiled(model, rows, drafting)
            loop(model, rows, drafting, engine="native", slots=slots).run()
            outcomes.append([(row.data, row.origins, row.stopped_by, row.near_ties, row.stats(1.0)) for row in rows])
    assert outcomes[0] == outcomes[1]


@pytest.mark.parametrize("topology", ["replicated", "replicated+", "branched", "branched+"])
def test_most_passes_are_run_by_cpp(monkeypatch, topology):
    """Else the test above would compare the loop in Python with itself."""
    model, counted = model_for(topology, 0, 0.1), []
    monkeypatch.setattr(NativeEngine, "verify", lambda *args: counted.append(1) or verify(*args))
    row = Options().row(b"a prompt", 0, 200)
    CompiledLoop(model, [row], DRAFTINGS["speculative"], engine="native").run()
    assert row.passes > 60
    assert len(counted) <= 2 + row.near_ties


def test_what_python_must_see_each_time_is_not_compiled():
    model = model_for("replicated", 0, 1.0)
    for options in (Options(utf8=True), Options(temperature=1.0, top_p=0.9), Options(temperature=1.0, top_k=3)):
        assert not can_be_compiled(model, [options.row(b"", 0, 9)], Drafting())
    rows = [Options().row(b"", 0, 9)]
    assert not can_be_compiled(model, rows, Drafting(chain(3), as_tree=True))
    assert not can_be_compiled(model, rows, Drafting(chain(3), model=model))
    assert not can_be_compiled(model_for("parallel", 0, 1.0), rows, Drafting(chain(3)))
    assert loop_kind("native", model, rows, Drafting()) is CompiledLoop
    greedy = Options(top_k=40, top_p=0.5).row(b"", 0, 9)  # nothing is drawn that could be cut
    assert can_be_compiled(model, [greedy], Drafting())
    assert loop_kind("torch", model, rows, Drafting()) is VerifyLoop


def test_a_stream_has_the_bytes_of_the_text_in_pieces():
    model = model_for("replicated", 0, 0.1)
    pieces = list(generate_stream(model, b"a prompt", 300, mode="speculative"))
    assert b"".join(pieces) == generate(model, b"a prompt", 300, mode="speculative").data
    assert len(pieces) > 3


def test_a_stream_counts_no_time_of_its_caller():
    def slowly(stream):
        time.sleep(2)
        for _ in range(4):
            next(stream)
            time.sleep(2)

    with pytest.raises(StopIteration) as end:
        slowly(generate_stream(model_for("replicated", 0, 0.1), b"a prompt", 3))
    assert 0 < end.value.value.stats["prompt_seconds"] <= end.value.value.stats["seconds"] < 2


@given(seed=st.integers(), steps=st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), max_size=9))
def test_numbers_drawn_ahead_are_those_of_the_source(seed, steps):
    plain, ahead = Random(seed), DrawnAhead(Random(seed))
    for count, used in steps:
        known = ahead.ahead(count)
        assert len(known) == count
        ahead.drop(min(count, used))
        assert known[:used].tolist() == [plain.random() for _ in known[:used]]
        assert ahead.random() == plain.random()

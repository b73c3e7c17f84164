"""Decoding: the cache against the full pass, and every mode against plain decoding."""

import copy
import time
from dataclasses import replace
from itertools import pairwise, product
from typing import get_args

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bytemtp.common.errors import UserError
from bytemtp.common.settings import ModelConfig, Topology
from bytemtp.common.vocab import EOT
from bytemtp.decoding.engines.native.engine import NativeEngine
from bytemtp.decoding.engines.tensor import TensorEngine
from bytemtp.decoding.generate import Options, generate, generate_batch, generate_stream
from bytemtp.decoding.verdicts import MARGIN
from bytemtp.model.model import ByteMTP

TOPOLOGIES = get_args(Topology)
TINY = ModelConfig(dim=32, layers=5, attention_heads=4, kv_heads=2, ffn_dim=48, n_future=4)
MODELS: dict[tuple, ByteMTP] = {}


def model_for(topology, seed=0, **changes) -> ByteMTP:
    """Made once: untrained, but with logits as steep as a trained model's, so that drafts are sometimes right."""
    key = (topology, seed, *sorted(changes.items()))
    if key not in MODELS:
        model = ByteMTP(replace(TINY, topology=topology, **changes), seed).eval()
        with torch.no_grad():
            # All heads nearly agree on a few favourite bytes: a stand-in for what training does.
            for unembed in model.unembed:
                unembed.weight.copy_(model.unembed[0].weight)
                unembed.weight[100:] *= 0.3
            for link in model.links:
                if isinstance(link, torch.nn.Linear):
                    torch.nn.init.eye_(link.weight)
            if model.transitions is not None:
                torch.nn.init.normal_(model.transitions, std=0.3, generator=torch.Generator().manual_seed(seed))
        MODELS[key] = model
    return MODELS[key]


ENGINES = {"torch": TensorEngine, "native": NativeEngine}
"""Native passes are equal by the order of their additions, tensor operations only by the judge of near ties."""


@settings(max_examples=40)
@given(
    kind=st.sampled_from(sorted(ENGINES)),
    topology=st.sampled_from(TOPOLOGIES),
    cuts=st.lists(st.integers(1, 23), unique=True).map(sorted),
    rejected=st.lists(st.integers(0, 3), min_size=24, max_size=24),
    window=st.sampled_from([24, 5]),
)
def test_any_split_through_the_cache_equals_the_full_pass(kind, topology, cuts, rejected, window):
    """Every chunk size, and after each chunk some wrong ids that are taken back."""
    model = model_for(topology)
    ids = torch.randint(0, 256, (2, 24), generator=torch.Generator().manual_seed(len(cuts)))
    engine = ENGINES[kind](model, 2, window)
    buffer = np.pad(ids.numpy(), ((0, 0), (0, 8 + TINY.n_future)))
    bounds = [0, *cuts, 24]
    full = full_pass(model, ids, window)
    for begin, end, wrong in zip(bounds, bounds[1:], rejected, strict=False):
        start, accepted = np.full(2, begin), np.full(2, end - begin)
        chunk = np.concatenate([ids[:, begin:end].numpy(), np.full((2, wrong), 7)], axis=1)
        logits = engine.verify(start, chunk, np.full(2, chunk.shape[1]))
        np.testing.assert_allclose(logits[:, : end - begin], full[0][:, begin:end], atol=1e-4, rtol=1e-4)
        drafted = list(engine.drafts(start, accepted, 4, buffer))
        assert len(drafted) == 3
        for i in (1, 2, 3):
            if topology != "deepseek" or end - 1 + i < 24:
                np.testing.assert_allclose(drafted[i - 1], full[i][:, end - 1], atol=1e-4, rtol=1e-4)


@settings(max_examples=40)
@given(
    kind=st.sampled_from(sorted(ENGINES)),
    heads=st.integers(2, 4),
    cuts=st.lists(st.integers(1, 23), min_size=1, unique=True).map(sorted),
    window=st.sampled_from([24, 5]),
)
def test_modules_read_again_what_they_read_as_drafts(kind, heads, cuts, window):
    """Each time only the id behind the accepted ones is known; those after it are other ones the next time."""
    model, dice = model_for("deepseek", n_future=heads), np.random.default_rng(len(cuts))
    ids, engine = dice.integers(0, 256, (2, 24 + heads)), ENGINES[kind](model, 2, window)
    for begin, end in pairwise([0, *cuts, 24]):
        engine.verify(np.full(2, begin), ids[:, begin:end], np.full(2, end - begin))
        seen = ids.copy()
        seen[:, end + 1 :] = dice.integers(0, 256, seen[:, end + 1 :].shape)
        drafted = list(engine.drafts(np.full(2, begin), np.full(2, end - begin), heads, seen))
        full = full_pass(model, torch.from_numpy(seen), window)
        for i in range(1, heads):
            np.testing.assert_allclose(drafted[i - 1], full[i][:, end - 1], atol=1e-4, rtol=1e-4)


def full_pass(model, ids, window):
    """Logits of each head."""
    with torch.no_grad():
        context = model.context(ids, ids.shape[1], window=window)
        hidden = model.heads(model.run_trunk(context), context)
        return [model.logits(i, x).numpy() for i, x in enumerate(hidden)]


@settings(max_examples=40)
@given(
    topology=st.sampled_from(TOPOLOGIES),
    prompt=st.binary(max_size=12),
    max_bytes=st.integers(0, 24),
    heads=st.integers(0, 4),
    window=st.sampled_from([0, 6]),
    seed=st.integers(0, 2),
    engine=st.sampled_from(sorted(ENGINES)),
)
def test_speculation_writes_the_bytes_of_plain_greedy_decoding(
    topology, prompt, max_bytes, heads, window, seed, engine
):
    model = model_for(topology, seed, window=window)
    plain = generate(model, prompt, max_bytes, engine=engine)
    fast = generate(model, prompt, max_bytes, mode="speculative", heads=heads, engine=engine)
    assert fast.stats["engine"] == engine
    assert fast.data == plain.data
    assert fast.stats["stopped_by"] == plain.stats["stopped_by"]
    assert fast.stats["forwards"] <= plain.stats["forwards"]


@given(
    prompt=st.binary(max_size=12),
    topology=st.sampled_from(TOPOLOGIES),
    k=st.integers(2, 5),
    engine=st.sampled_from(sorted(ENGINES)),
)
@settings(max_examples=30)
def test_a_separate_draft_model_changes_nothing_either(prompt, topology, k, engine):
    model, draft = model_for(topology), model_for("parallel", 3, layers=4)
    fast = generate(model, prompt, 20, mode="draft", draft=draft, heads=k, engine=engine)
    assert fast.data == generate(model, prompt, 20, engine=engine).data


def naive(model, prompt, count):
    """Greedy decoding by full passes."""
    ids = [EOT, *prompt]
    for _ in range(count):
        with torch.no_grad():
            ids.append(int(model(torch.tensor([ids]))[0, 0, -1].argmax()))
        if ids[-1] == EOT:
            break
    return bytes(i for i in ids[1 + len(prompt) :] if i != EOT)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("topology", TOPOLOGIES)
def test_plain_decoding_equals_full_passes(topology, engine):
    model = model_for(topology)
    assert generate(model, b"abc", 40, engine=engine).data == naive(model, b"abc", 40)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("topology", TOPOLOGIES)
def test_planted_ties_are_decided_alike(topology, engine):
    """Bytes in pairs with equal unembeddings: every greedy choice is a tie, which rounding used to decide."""
    model = model_for(topology, seed=7)
    with torch.no_grad():
        for unembed in model.unembed:
            noise = 1e-7 * torch.randn(128, TINY.dim, generator=torch.Generator().manual_seed(0))
            unembed.weight[1:256:2] = unembed.weight[0:256:2] + noise
    plain = generate(model, b"tie", 60, engine=engine)
    assert plain.stats["exact"] > 30
    for heads in (2, 3, 4):
        assert generate(model, b"tie", 60, mode="speculative", heads=heads, engine=engine).data == plain.data
    assert generate(model, b"tie", 60, mode="tree", engine=engine).data == plain.data


@settings(max_examples=40)
@given(
    topology=st.sampled_from(TOPOLOGIES),
    prompt=st.binary(max_size=12),
    max_bytes=st.integers(0, 24),
    tree=st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=3).map(tuple), max_size=5),
    window=st.sampled_from([0, 6]),
    engine=st.sampled_from(sorted(ENGINES)),
)
def test_trees_write_the_bytes_of_plain_greedy_decoding(topology, prompt, max_bytes, tree, window, engine):
    shape = grown(tree)
    model = model_for(topology, window=window)
    plain = generate(model, prompt, max_bytes, engine=engine)
    fast = generate(model, prompt, max_bytes, mode="tree", tree=shape, engine=engine)
    assert fast.data == plain.data
    assert fast.stats["forwards"] <= plain.stats["forwards"]


def grown(nodes):
    """The smallest tree with these nodes."""
    out = set()
    for node in nodes:
        for depth in range(1, len(node) + 1):
            out |= {(*node[: depth - 1], rank) for rank in range(node[depth - 1] + 1)}
    return tuple(out)


def test_drafts_are_kept_often_enough_for_these_tests_to_mean_something():
    """A bug in what happens after an accepted draft would go unseen if none ever was."""
    for topology in TOPOLOGIES:
        stats = [generate(model_for(topology, seed), b"", 60, mode="speculative").stats for seed in range(3)]
        assert sum(s["forwards"] for s in stats) <= sum(s["bytes"] for s in stats) - 3, topology


def test_a_tree_finds_more_than_its_chain():
    model = model_for("replicated")
    chain = generate(model, b"", 80, mode="speculative", heads=3)
    tree = generate(model, b"", 80, mode="tree", tree=grown([(2, 2)]))
    assert tree.stats["bytes_per_forward"] >= chain.stats["bytes_per_forward"]


@settings(max_examples=30)
@given(
    topology=st.sampled_from(TOPOLOGIES),
    prompts=st.lists(st.binary(max_size=20), min_size=1, max_size=4),
    mode=st.sampled_from(["ar", "speculative", "tree", "copy"]),
    temperature=st.sampled_from([0.0, 0.8]),
)
def test_rows_do_not_see_their_batch_mates(topology, prompts, mode, temperature):
    """In float64, so that rounding (which depends on the batch's shape) cannot move a draw."""
    model = double(topology)
    together = generate_batch(model, prompts, 16, mode=mode, temperature=temperature)
    for number, (prompt, row) in enumerate(zip(prompts, together, strict=True)):
        alone = generate_batch(model, [b""] * number + [prompt], 16, mode=mode, temperature=temperature)[-1]
        assert alone.data == row.data and alone.origins == row.origins


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("topology", TOPOLOGIES)
def test_a_text_does_not_see_the_one_before_it(topology, engine):
    """That one ends in its first pass, before the heads have read the prompt that both share."""
    options = Options(mode="speculative", temperature=1.0, seed=3, engine=engine)

    def last(*lengths):
        rows = [options.row(b"abcabcab", 1 + number - len(lengths), most) for number, most in enumerate(lengths)]
        options.loop(model_for(topology), rows, slots=1).run()
        return rows[-1].data, rows[-1].origins

    assert last(1, 24) == last(24)


def double(topology):
    key = ("double", topology)
    if key not in MODELS:
        MODELS[key] = ByteMTP(replace(TINY, topology=topology), 0).double().eval()
    return MODELS[key]


@settings(max_examples=40)
@given(prompt=st.binary(max_size=6), mode=st.sampled_from(["ar", "speculative", "tree", "copy"]), data=st.data())
def test_text_ends_before_the_first_stop_string(prompt, mode, data):
    """Whichever is complete first; of several that end there, the one that began first.  Their order is of no meaning.

    With "b" before "ab" in the list, the "a" used to stay.
    """
    model = model_for("replicated")
    whole = generate(model, prompt, 40)
    ends = data.draw(st.lists(st.integers(0, len(whole.data)), min_size=1, max_size=2))
    pieces = [whole.data[max(0, end - size) : end] for end in ends for size in data.draw(st.sets(st.integers(1, 4)))]
    stops = data.draw(st.permutations([*filter(None, pieces), b"never there"]))
    cut = generate(model, prompt, 40, mode=mode, stop=stops)
    found = [(whole.data.find(stop) + len(stop), whole.data.find(stop)) for stop in stops if stop in whole.data]
    assert cut.data == (whole.data[: min(found)[1]] if found else whole.data)
    assert len(cut.origins) == len(cut.data)
    assert cut.stats["stopped_by"] == ("stop" if found else whole.stats["stopped_by"])
    assert b"".join(generate_stream(model, prompt, 40, mode=mode, stop=stops)) == cut.data


def slowly(pieces):
    """What a generator returns to a caller who takes a fifth of a second for each piece."""
    while True:
        try:
            next(pieces)
        except StopIteration as end:
            return end.value
        time.sleep(0.2)


def test_time_in_the_callers_code_is_not_that_of_decoding():
    generation = slowly(generate_stream(model_for("linear"), b"a", 8, engine="torch"))
    assert len(generation.data) / generation.stats["bytes_per_s"] < 0.1 * len(generation.data)


def test_weights_made_in_inference_mode_can_be_decoded():
    with torch.inference_mode():
        model = ByteMTP(model_for("linear").config, 0)
    for engine in sorted(ENGINES):
        assert len(generate(model.eval(), b"a", 4, engine=engine).data) <= 4


def test_rounded_products_of_float32_are_told():
    torch.set_float32_matmul_precision("high")
    try:
        with pytest.warns(UserWarning, match="products of float32 are rounded here"):
            generate(model_for("linear"), b"a", 4, engine="torch")
    finally:
        torch.set_float32_matmul_precision("highest")


@settings(max_examples=40)
@given(
    prompt=st.text(max_size=4),
    cut=st.integers(0, 3),
    temperature=st.sampled_from([0.0, 3.0]),
    seed=st.integers(0, 9),
    mode=st.sampled_from(["speculative", "copy"]),
)
def test_utf8_mode_writes_well_formed_text(prompt, cut, temperature, seed, mode):
    """Also when the prompt ends inside a character; the text's own end may be cut by max_bytes."""
    raw = prompt.encode("utf-8", "surrogatepass").decode("utf-8", "ignore").encode()
    raw = raw[: len(raw) - min(cut, len(raw))]
    options = dict(utf8=True, temperature=temperature, seed=seed, max_bytes=30)
    out = generate(model_for("replicated"), raw, mode=mode, **options)
    text = (raw + out.data).decode("utf-8", "surrogateescape")
    if out.stats["stopped_by"] == "max_bytes":
        text = text.rstrip("".join(map(chr, range(0xDC80, 0xDD00))))  # a character that max_bytes cut
    assert not any("\udc80" <= character <= "\udcff" for character in text)


def louder(model, factor):
    """The same model with larger logits."""
    loud = copy.deepcopy(model)
    with torch.no_grad():
        loud.norm.weight.mul_(factor)
    return loud


@pytest.mark.parametrize("factor", [1, 1000])
@pytest.mark.parametrize("topology", TOPOLOGIES)
def test_near_ties_are_far_wider_than_rounding(topology, factor):
    """The margin against the largest error of float32 logits."""
    model = louder(model_for(topology), factor)
    ids = torch.randint(0, 256, (1, 64), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        logits = model(ids)[0, ..., :257].double()
        error = (logits - copy.deepcopy(model).double()(ids)[0, ..., :257]).abs().amax(-1)
    assert (error < MARGIN / 10 * logits.abs().amax(-1)).all()


@pytest.mark.parametrize("topology", TOPOLOGIES)
def test_ties_of_large_logits_are_decided_alike(topology):
    """The margin was once the same for logits of 10 and of 10,000: of these ties it saw none."""
    model = louder(model_for(topology, seed=7), 1e4)
    with torch.no_grad():
        for unembed in model.unembed:
            noise = 1e-7 * torch.randn(128, TINY.dim, generator=torch.Generator().manual_seed(0))
            unembed.weight[1:256:2] = unembed.weight[0:256:2] + noise
    plain = generate(model, b"tie", 40, engine="torch")
    assert plain.stats["exact"] > 20
    for engine, mode in product(("torch", "native"), ("ar", "speculative", "tree")):
        assert generate(model, b"tie", 40, mode=mode, engine=engine).data == plain.data


def test_seeds_reproduce_and_differ():
    model = model_for("parallel")
    options = dict(mode="speculative", temperature=1.0)
    first = generate(model, b"a", 30, seed=1, **options).data
    assert first == generate(model, b"a", 30, seed=1, **options).data
    assert first != generate(model, b"a", 30, seed=2, **options).data


def test_one_head_drafts_nothing():
    model = model_for("parallel", n_future=1)
    out = generate(model, b"a", 10, mode="speculative")
    assert out.data == generate(model, b"a", 10).data and out.stats["accept_rate_by_position"] == []


@pytest.mark.parametrize("engine", ENGINES)
def test_long_prompts_go_through_in_pieces(engine):
    model, options = model_for("deepseek"), {"max_bytes": 12, "engine": engine}
    prompt = bytes(range(256)) * 5
    plain = generate(model, prompt, **options)
    assert generate(model, prompt, mode="speculative", **options).data == plain.data == naive(model, prompt, 12)
    mixed = generate_batch(model, [prompt, b"short"], mode="speculative", **options)
    assert [row.data for row in mixed] == [plain.data, generate(model, b"short", **options).data]


@pytest.mark.parametrize("topology", TOPOLOGIES)
def test_prefill_leaves_the_prompt_as_it_is(topology):
    """Heads that read ids ahead once got drafts written over the prompt behind each piece of 512 ids, and the next
    piece was read with them."""
    prompt = bytes(range(256)) * 5
    options = Options(mode="speculative")
    row = options.row(prompt, 0, 1)
    loop = options.loop(model_for(topology), [row])
    loop.run()
    assert loop.ids[0, : 1 + len(prompt)].tolist() == [EOT, *prompt]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(max_bytes=-1), "max_bytes is -1"),
        (dict(temperature=-0.5), "temperature is -0.5"),
        (dict(temperature=float("nan")), "temperature is nan"),
        (dict(top_p=0.0), "top_p is 0.0"),
        (dict(top_k=-2), "top_k is -2"),
        (dict(heads=9, mode="speculative"), "heads is 9; it must be from 1 to 4"),
        (dict(mode="draft"), "needs a draft model"),
        (dict(stop=[b""]), "stop string is empty"),
        (dict(mode="tree", tree=((1,),)), "without its parent or the rank before it"),
        (dict(mode="tree", tree=grown([(0, 0, 0, 0)])), "the tree is 4 deep but 4 heads draft 3"),
    ],
)
def test_impossible_requests_are_refused(options, message):
    with pytest.raises(UserError, match=message):
        generate(model_for("parallel"), b"a", **{"max_bytes": 5, **options})

"""Fitting a tree: ranks against one pass a position, the choice against all trees, the promise against decoding."""

import itertools
import json
from collections import Counter
from dataclasses import replace
from typing import get_args

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import bytemtp
from bytemtp import evaluate
from bytemtp.common.errors import UserError
from bytemtp.common.settings import ModelConfig, Topology
from bytemtp.common.vocab import EOT
from bytemtp.decoding.generate import Generation
from bytemtp.decoding.tree import chain, check
from bytemtp.evaluation import shape_timing
from bytemtp.evaluation.bits_per_byte import PADDING
from bytemtp.evaluation.draft_shapes import bytes_per_pass, fit, kept, measure, own_text, places, window_paths
from bytemtp.generate import __main__ as command
from bytemtp.model.model import ByteMTP
from bytemtp.reports.page import pass_sizes

TOPOLOGIES = get_args(Topology)
TINY = ModelConfig(dim=32, layers=5, attention_heads=4, kv_heads=2, ffn_dim=48, n_future=4)
DEPTH = 3
TREE = check([*chain(3), (1,), (2,), (0, 1), (1, 0), (0, 0, 1)])
PATHS = st.lists(st.lists(st.integers(0, 2), min_size=2, max_size=2), min_size=1, max_size=12)


def steep(topology: str) -> ByteMTP:
    """Untrained, but its heads nearly agree on a few favourite bytes, so that drafts are sometimes right.

    A + behind the topology stands for transitions.
    """
    config = replace(TINY, topology=topology.rstrip("+"), transitions=topology.endswith("+"))
    model = ByteMTP(config, seed=6).eval()
    with torch.no_grad():
        if model.transitions is not None:
            torch.nn.init.normal_(model.transitions, std=0.2, generator=torch.Generator().manual_seed(6))
        for unembed in model.unembed:
            unembed.weight.copy_(model.unembed[0].weight)
            unembed.weight[100:] *= 0.3
        for link in model.links:
            if isinstance(link, torch.nn.Linear):
                torch.nn.init.eye_(link.weight)
    return model


@pytest.mark.parametrize("topology", [*TOPOLOGIES, "replicated+"])
@pytest.mark.parametrize("shape", [chain(DEPTH), TREE], ids=["chain", "tree"])
def test_on_its_own_text_the_passes_are_those_of_decoding(topology, shape):
    """What the measuring of files approximates: there it is exact, pass by pass."""
    if topology in ("deepseek", "replicated+") and shape == TREE:
        pytest.skip("a side branch's heads read the best branch's bytes in decoding")
    model, prompt = steep(topology), b"any prompt"
    out = bytemtp.generate(model, prompt, 120, mode="tree", tree=shape)
    ids = torch.tensor([[EOT, *prompt, *out.data]])
    (block,) = window_paths(model, ids, ids.shape[1] - 2 * DEPTH)
    lengths, position, sizes = kept(block, shape), len(prompt), [1]
    while position < len(block):
        sizes.append(lengths[position] + 1)
        position += sizes[-1]
    assert len(sizes) > 10 and max(sizes) > 1, "or the comparison is void"
    assert pass_sizes(out.origins)[: len(sizes)] == sizes


@torch.no_grad()
def slow_paths(model: ByteMTP, documents: list[bytes], seq_len: int) -> list[list[int]]:
    """One forward pass a position, over the context that its window gives it."""
    ids = [EOT]
    for document in documents:
        ids += [*document, EOT]
    opens = [i for i, value in enumerate(ids) if value == EOT]
    stride = (seq_len - DEPTH) // 2
    paths = []
    for p in range(len(ids) - DEPTH):
        if EOT in ids[p + 1 : p + DEPTH + 1]:
            continue
        window = p // stride * stride - (seq_len - DEPTH - stride)
        begin = max(max(i for i in opens if i <= p), window, 0)
        logits = model(torch.tensor([ids[begin : p + 2 * DEPTH + 1]]))[:, 0]
        here = p - begin
        path = []
        for d in range(1, DEPTH + 1):
            order = (-logits[d, here]).argsort(stable=True).tolist()
            path.append(order.index(int(logits[0, here + d].argmax())))
        paths.append(path)
    return paths


@settings(max_examples=20)
@given(
    topology=st.sampled_from(["parallel", "anticausal", "deepseek", "parallel+"]),
    documents=st.lists(st.binary(max_size=20), max_size=4).map(lambda some: [*some, b"at least one"]),
    seq_len=st.integers(2 * DEPTH + 1, 24),
)
def test_ranks_equal_one_forward_pass_a_position(tmp_path_factory, topology, documents, seq_len):
    folder = tmp_path_factory.mktemp("tree")
    for i, document in enumerate(documents):
        (folder / f"{i:03}").write_bytes(document)
    model = steep(topology)
    blocks = measure(model, [str(folder)], seq_len)
    assert np.concatenate(blocks).tolist() == slow_paths(model, documents, seq_len)


@pytest.mark.parametrize("before", [[], [PADDING, EOT], [97, EOT]], ids=["inside a document", "first", "later"])
def test_own_text_is_what_decoding_writes_after_the_given_ids(before):
    model, prompt = steep("linear"), list(b"given")
    row = torch.tensor([*before, *prompt, *b"and what the file says there"])
    given = len(before) + len(prompt)
    own = own_text(model, row, given).tolist()
    first = [EOT] if not before else [*before, prompt[0]]
    assert own[:given] == [*first, *prompt[1:]]
    seen = prompt if before else prompt[1:]
    assert bytes(own[given:]) == bytemtp.generate(model, bytes(seen), len(row) - given).data


def test_own_text_ends_where_the_model_ends_it():
    model = steep("linear")
    with torch.no_grad():
        model.unembed[0].weight[EOT] = 3 * model.unembed[0].weight[:EOT].mean(0)
        model.unembed[0].weight[EOT] += 40 * model.embed.weight[ord("x")]
    own = own_text(model, torch.tensor([EOT, ord("x"), 97, 98, 99]), 2).tolist()
    assert bytemtp.generate(model, b"x", 3).stats["stopped_by"] == "endoftext", "or this tests nothing"
    assert own == [EOT, ord("x"), EOT, PADDING, PADDING]


@given(values=st.lists(st.integers(0, 3), min_size=2, max_size=9), data=st.data())
def test_places_are_those_of_a_stable_sort(values, data):
    chosen = data.draw(st.integers(0, len(values) - 1))
    logits = torch.tensor(values, dtype=torch.float32)
    expected = (-logits).argsort(stable=True).tolist().index(chosen)
    assert places(logits[None, None], torch.tensor([[chosen]])).item() == expected


def better_rank_oftener(paths: list[list[int]]) -> np.ndarray:
    """The same paths with ranks exchanged among siblings so that the lower is the more frequent."""
    new: list[list[int]] = [[] for _ in paths]
    for depth in range(2):
        groups: dict[tuple[int, ...], Counter[int]] = {}
        for path in paths:
            groups.setdefault(tuple(path[:depth]), Counter())[path[depth]] += 1
        for path, renamed in zip(paths, new, strict=True):
            order = [rank for rank, _ in groups[tuple(path[:depth])].most_common()]
            renamed.append(order.index(path[depth]))
    return np.array(new)


@given(paths=PATHS, nodes=st.integers(1, 4))
def test_no_tree_of_as_many_nodes_keeps_more(paths, nodes):
    block = better_rank_oftener(paths)
    every = [*((i,) for i in range(3)), *itertools.product(range(3), repeat=2)]
    best = 0
    for some in itertools.combinations(every, nodes):
        try:
            best = max(best, sum(kept(block, check(some))))
        except UserError:
            continue  # no tree
    tree = fit([block], nodes)
    assert sum(kept(block, tree)) == best and len(tree) <= nodes


@given(paths=PATHS, nodes=st.integers(1, 9))
def test_what_is_fitted_is_a_tree_and_a_pass_keeps_its_longest_path(paths, nodes):
    block = np.array(paths)
    tree = fit([block], nodes)
    assert tree == check(tree)
    for path, count in zip(paths, kept(block, tree), strict=True):
        depth = 0
        while depth < len(path) and tuple(path[: depth + 1]) in tree:
            depth += 1
        assert count == depth


def test_a_walk_continues_where_the_pass_before_it_ended():
    block = np.array([[0, 0], [9, 9], [9, 9], [0, 9], [0, 0], [9, 0]])
    assert bytes_per_pass([block], chain(2)) == (3 + 2 + 1) / 3
    assert bytes_per_pass([block], ()) == 1
    assert bytes_per_pass([], chain(2)) == 1


def test_command_writes_a_tree_that_generate_reads(trained_run, tmp_path, capsysbinary):
    (tmp_path / "text").write_bytes(b"a rose is a rose is a rose\n" * 40)
    evaluate.main(["tree", str(trained_run), str(tmp_path / "text"), "--nodes", "5", "--json", str(tmp_path / "tree")])
    printed = capsysbinary.readouterr().out.decode()
    tree = json.loads((tmp_path / "tree").read_text())
    assert 1 <= len(tree) <= 5 and check(tree) and max(map(len, tree)) <= 2
    assert "fitted tree" in printed and "chain of 2" in printed and "draft  2" in printed
    common = [str(trained_run), "--prompt", "a rose", "--max-bytes", "20", "--device", "cpu"]
    command.main([*common, "--mode", "tree", "--tree", str(tmp_path / "tree")])
    drafted = capsysbinary.readouterr().out
    command.main([*common, "--mode", "ar"])
    assert drafted == capsysbinary.readouterr().out


def test_command_finds_the_fastest_shape(trained_run, tmp_path, capsys):
    (tmp_path / "text").write_bytes(b"a rose is a rose is a rose\n" * 40)
    evaluate.main(["tree", str(trained_run), str(tmp_path / "text"), "--json", str(tmp_path / "tree")])
    rows = [line.split() for line in capsys.readouterr().out.split("\n\n")[0].splitlines()[1:]]
    assert [" ".join(row[:3]) for row in rows[:3]] == ["no drafts 0", "chain of 1", "chain of 2"]
    assert sum("fastest" in row for row in rows) == 1
    assert check(json.loads((tmp_path / "tree").read_text()))


def test_passes_that_there_are_none_of_are_not_timed():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shape_timing, "generate", lambda *_, **__: Generation(b"", {"forwards": 1}, []))
        with pytest.raises(UserError, match="the model ends all texts at once"):
            shape_timing.seconds_a_pass(ByteMTP(TINY), [b"a"], [()])


@settings(max_examples=20)
@given(paths=PATHS)
def test_every_shape_can_be_decoded_with_and_is_named_by_what_does_it(paths):
    model = steep("linear")
    plain = bytemtp.generate(model, b"a", 12).data
    for shape in ((), chain(2), fit([np.array(paths)], 3)):
        assert bytemtp.generate(model, b"a", 12, **shape_timing.options_of(shape)).data == plain
    assert (
        shape_timing.named(())[1] == "--mode ar" and shape_timing.named(chain(2))[1] == "--mode speculative --heads 3"
    )


def test_the_fastest_is_the_one_with_most_bytes_a_second():
    one = shape_timing.Candidate("no drafts", (), "--mode ar", 1.0, 0.5)
    two = shape_timing.Candidate("chain of 2", chain(2), "--mode speculative --heads 3", 2.5, 1.0)
    lines = shape_timing.shape_table([one, two]).splitlines()
    assert "fastest" not in lines[1] and lines[2].endswith("fastest here: --mode speculative --heads 3")


def test_the_limit_counts_bytes_from_the_front(tmp_path):
    (tmp_path / "text").write_bytes(b"a rose is a rose\n" * 100)
    model = steep("parallel")
    some = measure(model, [str(tmp_path / "text")], 23, limit=100)
    everything = measure(model, [str(tmp_path / "text")], 23)
    assert len(some) == 10 and sum(map(len, some)) == 100
    assert all((one == other).all() for one, other in zip(some, everything, strict=False))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["RUN"], "no PATH given"),
        (["RUN", "FILE", "--nodes", "-1"], "nodes is -1"),
        (["RUN", "-"], "standard input cannot be read twice"),
        (["RUN", "FILE", "--bytes", "-1"], "bytes is -1"),
        (["RUN", "SHORT", "--text", "files"], "no document of 2 or more bytes"),
        (["ONE", "FILE"], "one head"),
        (["RUN", "missing"], "missing: no such file"),
        (["RUN", "FILE", "--node", "3"], "did you mean '--nodes'"),
        (["RUN", "FILE", "--json", "NOWHERE"], "cannot write"),
    ],
)
def test_bad_input_is_one_clear_line(trained_run, one_head_run, tmp_path, arguments, message):
    (tmp_path / "file").write_bytes(b"a rose is a rose" * 9)
    (tmp_path / "short").write_bytes(b"a")
    stand_for = {"RUN": trained_run, "ONE": one_head_run, "FILE": tmp_path / "file", "SHORT": tmp_path / "short"}
    stand_for["NOWHERE"] = tmp_path / "no" / "tree.json"
    with pytest.raises(UserError) as caught:
        evaluate.main(["tree", *(str(stand_for.get(word, word)) for word in arguments)])
    assert message in str(caught.value) and "\n" not in str(caught.value)

"""Future Lens: states, continuations and transplants are the model's own; probes find what is there to be found."""

from collections import Counter
from dataclasses import replace
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import bytemtp
from bytemtp import ByteMTP
from bytemtp.common.errors import UserError
from bytemtp.common.presets import DEFAULT_PRESET, PRESETS
from bytemtp.common.settings import flatten
from bytemtp.common.vocab import EOT, VOCAB_SIZE
from experiments.future_lens import __main__ as lens
from experiments.future_lens import contexts, probes, transplants
from experiments.future_lens.branches import begin
from experiments.future_lens.contexts import AHEAD, Contexts, drafts, read, windows
from experiments.future_lens.report import LAYERED, METHODS, SHOWN, best_layer, draw, table
from experiments.grid import Cell, cells_of
from experiments.n_sweep.__main__ import EXPERIMENT as SWEEP

SHAPE = {"dim": 16, "attention_heads": 2, "ffn_dim": 24, "layers": 4, "n_future": 3}
ENDS = (4, 6, 9)


def tiny(seed=0, **changes) -> ByteMTP:
    """In float64, so that nearly equal logits are in the same order whatever the arithmetic."""
    config = replace(PRESETS["nano"].model, **(SHAPE | changes))
    return ByteMTP(config, seed).double().eval().requires_grad_(False)


def rows_of(count=2, length=10, seed=0):
    return torch.randint(0, 256, (count, length), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("topology", ["replicated", "parallel", "causal", "anticausal", "linear", "deepseek"])
@pytest.mark.parametrize("changes", [{}, {"kv_heads": 1, "qk_norm": True}])
def test_the_last_states_give_head_1_s_logits(topology, changes):
    model, rows = tiny(topology=topology, **changes), rows_of()
    states, _ = begin(model, model.embed(rows))
    assert torch.equal(states[0], model.embed(rows))
    assert len(states) - 1 == sum(1 for _ in model.trunk) + (topology not in ("replicated", "linear")) * len(
        model.path_to_first_head
    )
    torch.testing.assert_close(model.logits(0, states[-1]), model(rows)[0])


def slow_continuation(model, text: list[int]) -> tuple[list[int], torch.Tensor]:
    """AHEAD ids, each by a forward pass over all of the text, and the states that they were read from."""
    text, states = list(text), []
    for _ in range(AHEAD):
        states.append(model.first_hidden(torch.tensor([text]), 0)[0, -1])
        text.append(int(model.logits(0, states[-1]).argmax()))
    return text[-AHEAD:], torch.stack(states)


@settings(max_examples=8)
@given(st.integers(0, 9), st.sampled_from([{}, {"topology": "causal"}, {"kv_heads": 1}, {"qk_norm": True}]))
def test_branches_write_what_the_model_writes(seed, changes):
    model, rows = tiny(seed, **changes), rows_of(seed=seed)
    known = read(model, rows, ENDS)
    texts = [row[: end + 1].tolist() for row in rows for end in ENDS]
    assert known.last.tolist() == [text[-1] for text in texts]
    for text, written, later, states in zip(texts, known.written, known.later, known.states, strict=True):
        ids, slow = slow_continuation(model, text)
        assert written.tolist() == ids
        torch.testing.assert_close(later, slow)
        torch.testing.assert_close(states[-1], slow[0])
        torch.testing.assert_close(states[0], model.embed.weight[text[-1]])


def test_contexts_come_in_passes(monkeypatch):
    model, rows = tiny(), rows_of(5)
    at_once = read(model, rows, ENDS)
    monkeypatch.setattr(contexts, "WINDOWS_A_PASS", 2)
    in_passes = read(model, rows, ENDS)
    for name in ("states", "later", "written", "last"):
        torch.testing.assert_close(getattr(in_passes, name), getattr(at_once, name))


def test_drafts_are_those_of_each_head():
    model, rows = tiny(), rows_of()
    said = drafts(model, rows, ENDS)
    assert said.shape == (6, 1, 3)
    texts = [row[: end + 1] for row in rows for end in ENDS]
    assert said[:, 0].tolist() == [model(text[None])[:, 0, -1].argmax(-1).tolist() for text in texts]
    assert torch.equal(said[:, 0, 0], read(model, rows, ENDS).written[:, 0])


@settings(max_examples=8)
@given(st.integers(0, 9), st.sampled_from([{}, {"topology": "parallel"}, {"kv_heads": 1}]))
def test_a_state_in_its_own_place_changes_nothing(seed, changes):
    """The prompt is the context itself, whose last state is put where it already is."""
    model, rows = tiny(seed, **changes), rows_of(1, seed=seed)
    own = read(model, rows, [9])
    for layer, states in enumerate(own.states.unbind(1)):
        assert torch.equal(transplants.written(model, model.embed(rows[0]), states, layer), own.written)


def test_a_state_in_another_place_is_what_is_read():
    """Of the last layer it alone makes the next byte; of the embedding it is the prompt with another last byte."""
    model, test = tiny(), read(tiny(), rows_of(), ENDS)
    said = transplants.fixed(model, test)
    assert said.shape == (6, len(test.states[0]), AHEAD)
    assert torch.equal(said[:, -1, 0], test.written[:, 0])
    for last, ids in zip(test.last.tolist(), said[:, 0].tolist(), strict=True):
        assert ids == slow_continuation(model, [*transplants.PROMPT[:-1], last])[0]


def test_a_state_in_the_middle_goes_on_through_the_layers_above():
    """The twin replaces it in the model's own layers, over all of the text and anew for each byte."""
    model, test = tiny(), read(tiny(), rows_of(1), ENDS)
    place, layer = len(transplants.PROMPT) - 1, 2

    for state, ids in zip(test.states[:, layer], transplants.fixed(model, test)[:, layer], strict=True):
        hook = model.trunk[layer].register_forward_pre_hook(partial(put, state, place))
        assert slow_continuation(model, list(transplants.PROMPT))[0] == ids.tolist()
        hook.remove()


def put(state, place, block, arguments):
    """In a layer's input."""
    arguments[0][:, place] = state


def test_a_prompt_is_learnt_and_the_model_stays(monkeypatch):
    monkeypatch.setattr(transplants, "STEPS", 20)
    model, training = tiny(), read(tiny(), rows_of(20), ENDS)
    weights = [parameter.clone() for parameter in model.parameters()]
    everything, layer = torch.arange(len(training.last)), 2
    prompts = [transplants.embedded(model), *(transplants.learn(model, training, layer) for _ in range(2))]
    before, after, again = (transplants.prompt_loss(model, p, training, everything, layer) for p in prompts)
    assert after == again < before
    assert all(map(torch.equal, weights, model.parameters()))


def test_the_loss_of_a_prompt_is_least_where_nothing_is_lost():
    """After the context itself the model expects what it expects: no more than the entropy of that is left."""
    model, rows = tiny(), rows_of(1)
    own = read(model, rows, [9])
    loss = transplants.prompt_loss(model, model.embed(rows[0]), own, torch.tensor([0]), 1)
    law = model.logits(0, own.later[:, 1])[:, :VOCAB_SIZE].softmax(-1)
    torch.testing.assert_close(loss, -(law * law.log()).sum())
    assert transplants.prompt_loss(model, transplants.embedded(model), own, torch.tensor([0]), 1) > loss


def made_up(count: int, seed: int, **changes) -> Contexts:
    source = torch.Generator().manual_seed(seed)
    known = Contexts(
        states=torch.randn(count, 2, 6, generator=source),
        later=torch.randn(count, 3, 16, generator=source, dtype=torch.float64),
        written=torch.randint(0, 9, (count, 3), generator=source),
        last=torch.randint(0, 9, (count,), generator=source),
    )
    return replace(known, **changes)


def test_a_linear_rule_is_found(monkeypatch):
    """One of four bytes by the signs of two of layer 1's numbers, other two at each distance; layer 0 knows nothing."""
    monkeypatch.setattr(probes, "EPOCHS", 100)

    def ruled(count, seed):
        known = made_up(count, seed)
        kept = (known.states[:, 1].abs() > 0.3).all(1)
        states = known.states[kept]
        written = torch.stack([2 * (states[:, 1, n] > 0) + (states[:, 1, n + 3] > 0) for n in range(3)], 1)
        return Contexts(states, known.later[kept], 40 + 10 * written, known.last[kept])

    training, test = ruled(10_000, 0), ruled(1000, 1)
    right = (probes.to_bytes(training, test) == test.written[:, None]).double().mean(0)
    assert right.shape == (2, 3)
    assert right[1].min() == 1 and right[0].max() < 0.4


def test_a_linear_map_between_states_is_found():
    model, rule = tiny(), torch.randn(7, 3, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(2))

    def ruled(count, seed):
        known = made_up(count, seed)
        return replace(known, later=torch.einsum("rf,fnd->rnd", probes.features(known.states)[1].double(), rule))

    training, test = ruled(200, 0), ruled(50, 1)
    shaped = [
        replace(known, states=probes.features(known.states)[..., :-1].transpose(0, 1)) for known in (training, test)
    ]
    said = probes.to_states(model, *shaped)
    assert torch.equal(said[:, 1], model.logits(0, test.later).argmax(-1))
    assert not torch.equal(said[:, 0], said[:, 1])


@given(st.integers(0, 5), st.integers(1, 6))
def test_least_squares_is_the_library_s(seed, width):
    source = torch.Generator().manual_seed(seed)
    x, y, at = (torch.randn(*shape, generator=source).double() for shape in ((40, width), (40, 3), (5, width)))
    ones = [torch.cat([part, torch.ones(len(part), 1)], 1) for part in (x, at)]
    slow = ones[1] @ torch.linalg.lstsq(ones[0], y).solution
    torch.testing.assert_close(probes.linear(x, y, at), slow, rtol=1e-4, atol=1e-4)


@given(st.integers(0, 99))
def test_bigrams_are_the_most_frequent(seed):
    training, test = made_up(60, seed), made_up(20, seed + 100)
    said = probes.bigram(training, test)
    assert said.shape == (20, 1, 3)
    for n in range(3):
        pairs = Counter(zip(training.last.tolist(), training.written[:, n].tolist(), strict=True))
        for last, id_ in zip(test.last.tolist(), said[:, 0, n].tolist(), strict=True):
            assert pairs[last, id_] == max(pairs[last, other] for other in range(VOCAB_SIZE))


def test_precision_and_surprisal_count():
    model, rows = tiny(), rows_of()
    test = read(model, rows, ENDS)
    wrong = (test.written + 1) % 256
    expected = torch.stack([test.written, torch.where(torch.arange(6)[:, None] < 3, test.written, wrong)], 1)
    assert lens.precision(expected[..., :2], test).tolist() == [[1, 1], [0.5, 0.5]]
    bits = lens.surprisal(model, expected, test)
    laws = model.logits(0, test.later)[..., :VOCAB_SIZE].softmax(-1)
    slow = [-torch.log2(laws[r, n, expected[r, 1, n]]) for n in range(AHEAD) for r in range(6)]
    torch.testing.assert_close(bits[1], torch.stack(slow).unflatten(0, (AHEAD, 6)).mean(1))
    assert (bits[0] < bits[1]).all()


@pytest.fixture
def corpus(tmp_path):
    path = tmp_path / "text"
    path.mkdir()
    for i in range(9):
        (path / f"{i}.txt").write_bytes(bytes((97 + (i + j * j) % 23) for j in range(700)))
    return str(path)


def test_windows_lie_inside_documents(corpus):
    found = windows(corpus, 17)
    assert found.shape == (3, contexts.WINDOW) and (found != EOT).all()
    assert torch.equal(found, windows(corpus, 17))
    texts = [bytes((97 + (i + j * j) % 23) for j in range(700)) for i in range(9)]
    assert all(any(bytes(row.tolist()) in text for text in texts) for row in found)
    with pytest.raises(UserError, match=r"has \d+ windows of 128 bytes inside documents; 1250 are needed"):
        windows(corpus, 10_000)


@pytest.mark.parametrize("run", ["trained_run", "one_head_run"])
def test_a_cell_is_scored(run, corpus, request, monkeypatch):
    """Training aside: every method, layer and distance has its share."""
    folder = request.getfixturevalue(run)
    monkeypatch.setattr(lens, "train", lambda cell, path: {"minutes": 0.1})
    monkeypatch.setattr(Cell, "folder", folder)
    monkeypatch.setattr(transplants, "STEPS", 2)
    options = {"train": corpus, "heldout": corpus, "contexts": 64, "tested": 40}
    line = lens.score(Cell("future_lens", "cpu", "n=1", 0, {}, options))
    model = bytemtp.load(folder)
    layers, heads = len(model.first_modules()) - 2, model.config.n_future
    assert (line["fitted"], line["tested"], line["minutes"]) == (64, 40, 0.1)
    for kind in ("precision", "surprisal"):
        shapes = {method: torch.tensor(values).shape for method, values in line[kind].items()}
        assert set(shapes) == set(METHODS)
        assert shapes.pop("heads") == (1, heads) and shapes.pop("bigram") == (1, AHEAD)
        assert set(shapes.values()) == {(layers, AHEAD)}
        assert all(torch.isfinite(torch.tensor(values)).all() for values in line[kind].values())
    # The last state is the one that the next byte is read from.
    assert [line["precision"][method][-1][0] for method in ("states", "fixed", "learnt")] == [1, 1, 1]
    assert line["precision"]["heads"][0][0] == 1


def test_cells_differ_in_their_heads_alone():
    """Of both presets."""
    for preset in lens.EXPERIMENT.presets():
        cells = {cell.name: cell.settings for cell in cells_of(lens.EXPERIMENT, preset, [0])}
        assert {name: settings.pop("model.n_future") for name, settings in cells.items()} == {"n=1": 1, "n=8": 8}
        assert cells["n=1"] == cells["n=8"]


def test_trainings_are_those_of_the_sweep_over_heads():
    ours, theirs = ({cell.name: cell.folder for cell in cells_of(one, "cpu", [0])} for one in (lens.EXPERIMENT, SWEEP))
    assert ours.items() <= theirs.items()


def test_the_paper_preset_is_midi():
    chosen = cells_of(lens.EXPERIMENT, "paper", [0])[0].settings
    midi, default = PRESETS["midi"], PRESETS[DEFAULT_PRESET]
    assert (flatten(midi).items() - flatten(default).items()) <= chosen.items()


def line_of(cell: str, seed: int, best: float) -> dict:
    """Made up: layer 2 is the best of three and sees `best` at distance 1, less of what is further ahead."""
    heads = 8 if cell == "n=8" else 1
    by_layer = [[round(share * best / (1 + abs(n - 1)), 4) for n in range(AHEAD)] for share in (0.5, 0.8, 1.0)]
    shares = dict.fromkeys(LAYERED, by_layer)
    shares |= {"heads": [by_layer[2][:heads]], "bigram": [by_layer[0]]}
    return {"key": {"cell": cell, "seed": seed}, "precision": shares}


LINES = [line_of("n=1", 0, 0.3), line_of("n=1", 1, 0.31), line_of("n=8", 0, 0.4), line_of("n=8", 1, 0.43)]


def test_the_table_has_the_best_layer_and_the_differences():
    first, second = table(LINES).split("\n\n")
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in first.splitlines()]
    assert rows[0] == ["expected by", "model", "seeds", *(f"N = {n}" for n in SHOWN)]
    assert rows[2][:5] == ["linear map to bytes", "n=1", "2", "30.5 ± 0.7 (2)", "15.2 ± 0.4 (2)"]
    assert [row[1] for row in rows if row[0] == METHODS["heads"]] == ["n=8"], "one head drafts nothing"
    assert "(" not in rows[-1][3]
    difference = [cell.strip() for cell in second.splitlines()[2].strip("|").split("|")]
    assert difference[:4] == ["linear map to bytes", "n=8 minus n=1", "2", "+11.0 ± 1.4, p 0.058"]
    assert METHODS["heads"] not in second


def test_the_best_layer_is_chosen_by_the_mean():
    lines = [line_of("n=1", 0, 0.3), line_of("n=1", 1, 0.3)]
    lines[0]["precision"]["bytes"] = [[0.9] * AHEAD, [0.1] * AHEAD, [0.2] * AHEAD]
    lines[1]["precision"]["bytes"] = [[0.1] * AHEAD, [0.1] * AHEAD, [0.2] * AHEAD]
    assert best_layer("bytes", lines, 1) == 0
    assert best_layer("bytes", lines[1:], 1) == 2
    assert best_layer("states", lines, 1) == 2


@pytest.mark.parametrize("lines", [LINES, LINES[:1], LINES[3:]])
def test_some_cells_are_enough_for_table_and_picture(lines):
    """Runs that have come to their end so far."""
    assert ("minus" in table(lines)) == (len(lines) > 1)
    picture = draw(lines)
    curves = [line.get_label() for line in picture.axes[0].get_lines() if not line.get_label().startswith("_")]
    names = {line["key"]["cell"] for line in lines}
    assert set(curves) == {
        label
        for name in names
        for label in (name, f"{name}, bigram", *([f"{name}, the model's own heads"] if name == "n=8" else []))
    }
    assert len(picture.axes) == 8

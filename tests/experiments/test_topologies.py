"""Topologies at equal parameters, and what linear maps read off a trunk."""

import json
import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import pytest
import torch
import tyro
from hypothesis import given
from hypothesis import strategies as st

import bytemtp
from bytemtp.common.cli import parse
from bytemtp.common.errors import UserError
from bytemtp.common.presets import preset
from bytemtp.common.settings import LAYERED, Settings
from bytemtp.plan import meta_model
from experiments import library
from experiments.grid import BEFORE, SECTIONS, Cell, cells_of
from experiments.topologies import __main__ as topologies
from experiments.topologies import trunk
from tests.experiments import small_cells

SMALL = small_cells.SMALL | {"model.layers": 5}
TINY = bytemtp.ByteMTP(replace(preset("nano").model, dim=16, layers=1, attention_heads=1, ffn_dim=16))


@dataclass(frozen=True)
class Given:
    """Settings and nothing else, as the command that trains a cell reads them."""

    settings: Annotated[tyro.conf.FlagConversionOff[Settings], tyro.conf.arg(name="")]


def settings_of(cell: Cell) -> Settings:
    chosen = BEFORE | cell.settings
    words = [f"--{name}={value}" for name, value in chosen.items() if name.startswith(SECTIONS)]
    return parse(Given, "", words, Given(preset("tiny"))).settings


@pytest.mark.parametrize("name", ["cpu", "paper"])
def test_parameters_are_equal(name: str) -> None:
    cells = {settings_of(cell).model: cell for cell in cells_of(topologies.EXPERIMENT, name, [0])}
    models = {cell.name: meta_model(settings_of(cell)) for cell in cells.values()}
    counts = [model.num_parameters() for model in models.values()]
    assert max(counts) / min(counts) - 1 < (0.002 if name == "cpu" else 0.016)
    shapes = {model.config.topology: topologies.shape(model) for model in models.values() if model.config.n_future > 1}
    layers = models["n=1"].config.layers
    assert {shapes[topology]["trunk_layers"] for topology in LAYERED & shapes.keys() - {"branched"}} == {layers - 4}
    first = {topology: shape["first_layers"] for topology, shape in shapes.items()}
    assert first["parallel"] == first["causal"] == first["deepseek"] == layers - 3
    assert first["anticausal"] == first["linear"] == first["replicated"] == layers
    assert first.get("branched", layers - 1) == layers - 1


def test_cells_differ_in_topology_width_and_weighting() -> None:
    asked = {"model.topology", "model.ffn_dim", "model.n_future", "train.head_weights", "train.far_rows"}
    for name in topologies.EXPERIMENT.presets():
        rest = [
            {key: value for key, value in cell.settings.items() if key not in asked}
            for cell in cells_of(topologies.EXPERIMENT, name, [0])
        ]
        assert rest.count(rest[0]) == len(rest) > 1
        weighted = [cell for cell in cells_of(topologies.EXPERIMENT, name, [0]) if cell.name.endswith(topologies.EQUAL)]
        assert {(cell.settings["train.head_weights"], cell.settings["train.far_rows"]) for cell in weighted} == {
            ("equal", 1.0)
        }


@pytest.mark.parametrize("name", ["n=1", "anticausal, equal"])
def test_a_cell_is_trained_and_scored(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(library, "WRITTEN", 8)
    for file in ("train", "heldout"):
        Path(f"{file}.txt").write_bytes(file.encode() * 300)
    (cell,) = cells_of(topologies.EXPERIMENT, "cpu", [0], [name])
    options = cell.options | {"train": "train.txt", "heldout": "heldout.txt", "places": 600}
    scored = topologies.score(replace(cell, settings=cell.settings | SMALL, options=options))
    assert scored["first_layers"] == 5 and scored["trunk_layers"] == (5 if name == "n=1" else 1)
    assert len(scored["trunk"]) == trunk.AHEAD and all(0 < bits < 20 for bits in scored["trunk"])
    assert json.loads(json.dumps(scored)) == scored


def test_places_are_those_whose_next_bytes_are_in_the_document(tmp_path: Path) -> None:
    """A slow twin: each state is that of the text up to its place alone, and the targets are the bytes that follow."""
    path = tmp_path / "text.txt"
    path.write_bytes(bytes(range(200)))
    states, targets = trunk.read(TINY, str(path), 150)
    for state, ids in zip(states[::40], targets[::40].tolist(), strict=True):
        assert ids == list(range(ids[0], ids[0] + trunk.AHEAD))
        before = torch.tensor([[256, *range(ids[0])]])
        whole = TINY.run_trunk(TINY.context(before, before.shape[1]))[0, -1]
        assert any(torch.allclose(state, other, atol=1e-4) for other in (whole, without_end(ids[0])))


def without_end(first: int) -> torch.Tensor:
    """The state of a row that begins with the document's first byte."""
    ids = torch.tensor([[*range(first)]]) if first else torch.tensor([[256]])
    return TINY.run_trunk(TINY.context(ids, ids.shape[1]))[0, -1]


def test_too_few_places_are_told(tmp_path: Path) -> None:
    path = tmp_path / "text.txt"
    path.write_bytes(b"abcdefgh")
    with pytest.raises(UserError, match="places with 4 bytes behind them; 1000 are needed"):
        trunk.read(TINY, str(path), 1000)


@given(st.integers(0, 2**32 - 1))
def test_surprisal_is_that_of_a_softmax(seed: int) -> None:
    random = torch.Generator().manual_seed(seed)
    x, weights = torch.randn(6, 3, generator=random), torch.randn(3, 2, 5, generator=random)
    targets = torch.randint(5, (6, 2), generator=random)
    for n, bits in enumerate(trunk.surprisal(x, weights, targets)):
        shares = [torch.softmax(row @ weights[:, n], 0)[id_].item() for row, id_ in zip(x, targets[:, n], strict=True)]
        assert bits == pytest.approx(-sum(map(math.log2, shares)) / len(shares), abs=1e-4)


def line(cell: str, seed: int, heads: int = 4) -> dict:
    drafting = [{"bytes_per_pass": 2.0, "second_byte": 0.6, "speed_up": 1.5, "bytes_per_s": 1500.0 + seed}] * 2
    return {
        "key": {"cell": cell, "seed": seed, "settings": {}},
        "bpb": 1.5 + seed,
        "bpb_per_head": [1.5] * heads,
        "drafting": drafting if heads > 1 else [],
        "minutes": 2.0,
        "parameters": 1_675_392,
        "trunk_layers": 4,
        "first_layers": 5,
        "trunk": [2.0, 3.0, 4.0, 4.5 + seed],
    }


def test_the_tables_have_parameters_and_the_trunk() -> None:
    lines = [line("n=1", seed, heads=1) for seed in (0, 1)]
    lines += [line(name, seed) for name in ("causal", "causal, equal") for seed in (0, 1)]
    first, second = topologies.table(lines).split("\n\n")
    texts = [text.strip() for text in first.splitlines()[3].split("|")[1:-1]]
    assert texts[:7] == ["causal", "2", "1,675,392", "5", "1,500 ± 1", "2.0000 ± 0.7071", "+0.0000 ± 0.0000"]
    assert "head 8" not in first and "head 4" in first
    assert [text.strip() for text in second.splitlines()[-1].split("|")[1:3]] == ["causal, equal", "4"]
    assert second.count("5.000 ± 0.707") == 3
    assert len(topologies.draw(lines).axes) == 3

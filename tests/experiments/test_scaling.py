"""Scaling: sizes of models, prices against one head, and straight lines through them."""

import json
import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import bytemtp
from bytemtp.common.presets import preset
from bytemtp.common.settings import ModelConfig
from experiments import library
from experiments.grid import cells_of
from experiments.scaling import __main__ as scaling
from tests.experiments.small_cells import small


@pytest.mark.parametrize("name", ["cpu", "paper"])
def test_the_cells_of_a_size_have_one_trunk(name: str) -> None:
    sizes: dict[str, set[tuple]] = {}
    for cell in cells_of(scaling.EXPERIMENT, name, [0]):
        shape = tuple(cell.settings[f"model.{part}"] for part in ("dim", "layers", "attention_heads", "ffn_dim"))
        sizes.setdefault(cell.name.partition(", ")[0], set()).add(shape)
        assert cell.name.partition("n=")[2].partition(",")[0] == str(cell.settings["model.n_future"])
    assert len(sizes) >= 5 and all(len(shapes) == 1 for shapes in sizes.values())


def test_names_tell_the_size() -> None:
    """Parameters of the layers: 4 d² of attention and 3 d f of the feed-forward part in each."""
    for cell in cells_of(scaling.EXPERIMENT, "cpu", [0]):
        dim, layers, ffn = (cell.settings[f"model.{part}"] for part in ("dim", "layers", "ffn_dim"))
        size = layers * (4 * dim**2 + 3 * dim * ffn + 2 * dim)
        assert float(cell.name.partition("M")[0]) * 1e6 == pytest.approx(size, rel=0.12)


def test_a_size_counts_layers_alone() -> None:
    config = ModelConfig(dim=16, layers=2, attention_heads=1, ffn_dim=24, n_future=8)
    assert scaling.size_of(bytemtp.ByteMTP(config)) == 2 * (4 * 16**2 + 3 * 16 * 24 + 2 * 16)
    assert scaling.size_of(bytemtp.ByteMTP(preset("tiny").model)) == 803_840


def test_a_cell_is_trained_and_scored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(library, "WRITTEN", 8)
    for name in ("train", "heldout"):
        Path(f"{name}.txt").write_bytes(name.encode() * 300)
    (cell,) = cells_of(scaling.EXPERIMENT, "cpu", [0], ["0.05M, n=4, equal"])
    scored = scaling.score(small(cell, train="train.txt", heldout="heldout.txt"))
    assert len(scored["bpb_per_head"]) == 4 and scored["size"] == 4 * 16**2 + 3 * 16 * 16 + 2 * 16
    assert json.loads(json.dumps(scored)) == scored


def line(size: int, kind: str, seed: int, bpb: float) -> dict:
    decoded = [{"bytes_per_pass": 2.0, "speed_up": 1.25}] * 2
    return {
        "key": {"cell": f"{size}, {kind}", "seed": seed},
        "size": size,
        "bpb": bpb,
        "drafting": [] if kind == "n=1" else decoded,
        "minutes": 2.0,
    }


def lines_of(prices: dict[int, list[float]]) -> list[dict]:
    """With one head each seed has bits of its own; eight heads cost what is given by size, then by seed."""
    return [
        line(size, kind, seed, 2 + seed / 10 + price)
        for size, of_size in prices.items()
        for seed, value in enumerate(of_size)
        for kind, price in (("n=1", 0.0), ("n=8, equal", value))
    ]


@given(st.floats(-0.3, 0.3), st.floats(-1, 1), st.lists(st.floats(-0.01, 0.01), min_size=2, max_size=4))
def test_a_straight_line_is_found_again(slope: float, start: float, seeds: list[float]) -> None:
    sizes = (10**4, 10**5, 10**6)
    lines = lines_of({size: [start + seed + slope * math.log10(size) for seed in seeds] for size in sizes})
    fits = scaling.fits_of(scaling.prices_of(lines)["n=8, equal"])
    assert [fit[0] for fit in fits] == pytest.approx([slope] * len(seeds), abs=1e-9)
    assert [fit[1] for fit in fits] == pytest.approx([start + seed for seed in seeds], abs=1e-9)


def test_the_tables_have_prices_and_where_they_end() -> None:
    """0.3 bits at ten thousand parameters, 0.2 at a hundred thousand, 0.1 at a million: nothing at ten million."""
    lines = lines_of({10**4: [0.31, 0.29], 10**5: [0.22, 0.18], 10**6: [0.09, 0.11]})
    first, second = scaling.table(lines).split("\n\n")
    rows = [[text.strip() for text in row.split("|")[1:-1]] for row in first.splitlines()]
    assert rows[2][:6] == ["10000, n=1", "2", "10,000", "2.0500 ± 0.0707", "", ""]
    assert rows[3][2:5] == ["10,000", "2.3500 ± 0.0566", "+0.3000 ± 0.0141"]
    heads, sizes, change, _, nothing = (text.strip() for text in second.splitlines()[-1].split("|")[1:-1])
    assert (heads, sizes, change, nothing) == ("n=8, equal", "3", "-0.1000 ± 0.0141", "1e+07")
    assert len(scaling.draw(lines).axes) == 2


def test_a_price_that_grows_ends_nowhere() -> None:
    lines = lines_of({10**4: [0.1, 0.1], 10**5: [0.2, 0.2], 10**6: [0.3, 0.3]})
    assert "no size" in scaling.table(lines)


@pytest.mark.parametrize(("slope", "start"), [(-1e-4, 0.1), (-1e-2, -0.1), (0.0, 0.1)])
def test_a_price_that_hardly_falls_or_is_none_ends_nowhere(slope: float, start: float) -> None:
    prices = {size: [start + slope * math.log10(size)] * 2 for size in (10**4, 10**5, 10**6)}
    assert "no size" in scaling.table(lines_of(prices))


def test_two_sizes_make_no_line() -> None:
    assert len(scaling.table(lines_of({10**4: [0.1, 0.1], 10**5: [0.2, 0.2]})).split("\n\n")) == 1


def test_a_seed_s_line_goes_through_the_sizes_that_it_has() -> None:
    lines = lines_of({10**4: [0.3, 0.1], 10**5: [0.2, 0.2], 10**6: [0.1, 0.3], 10**7: [0, 9]})[:-2]
    fits = scaling.fits_of(scaling.prices_of(lines)["n=8, equal"])
    assert [slope for slope, _ in fits] == pytest.approx([-0.1, 0.1])


def test_a_seed_without_one_head_has_no_price() -> None:
    lines = [one for one in lines_of({10**4: [0.1, 0.2]}) if one["key"]["cell"] != "10000, n=1" or one["key"]["seed"]]
    assert list(scaling.prices_of(lines)["n=8, equal"][10**4]) == [1]

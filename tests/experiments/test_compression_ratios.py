"""The experiment on compression: what it compresses, what it counts, and its table and picture."""

import tarfile
from dataclasses import replace

import pytest

import bytemtp
from bytemtp.common.errors import UserError
from experiments.compression import __main__ as module
from experiments.compression.__main__ import EXPERIMENT, SIZES, WAYS, beginning, draw, score, speeds, table, with_model
from experiments.grid import cells_of

QUICK = {"one byte a pass": "ar", "heads": "speculative", "copies": "copy"}
"""Without mode "auto", which measures this machine first."""


def lines(name: str, ours: float) -> list[dict]:
    figures = dict.fromkeys((*SIZES, "with float32", "with bfloat16"), 2.5)
    rates = {f"{way}, bytes/s": 1000.0 * (1 + i) for i, way in enumerate(WAYS)}
    passes = {f"{way}, bytes a pass": 1.0 + i for i, way in enumerate(WAYS)}
    key = {"grid": "cpu", "cell": name, "settings": {}}
    return [
        {"key": key | {"seed": seed}, **figures, **rates, **passes, "ours": ours + seed / 8, "minutes": 1}
        for seed in (0, 1)
    ]


MADE_UP = [*lines("n=1", 2.0), *lines("n=8", 2.25)]


def test_the_table_has_sizes_differences_and_speeds():
    sizes, differences, rates = table(MADE_UP).split("\n\n")
    assert sizes.splitlines()[2].startswith("| n=1         | 2     | 2.062 ± 0.088 | 2.500 ± 0.000")
    assert "| n=8 minus n=1" in differences and "| +0.2500 ± 0.0000 |" in differences
    assert [row.split(" | ")[-1].split()[0] for row in rates.splitlines()[2:]] == 2 * ["1.00", "2.00", "3.00", "4.00"]
    assert table(MADE_UP[:2]).count("\n\n") == 1


def test_the_picture_has_both_panels():
    left, right = draw(MADE_UP).axes
    assert [text.get_text() for text in left.get_yticklabels()] == ["n=1", "n=8"]
    assert len(right.get_legend().get_texts()) == len(WAYS)


def test_the_sample_is_the_front_of_all_documents(tmp_path):
    with tarfile.open(tmp_path / "held.tar", "w") as tar:
        for name in "ab":
            (tmp_path / name).write_bytes(name.encode() * 10)
            tar.add(tmp_path / name, name)
    assert beginning(str(tmp_path / "held.tar"), 15) == b"a" * 10 + b"b" * 5
    with pytest.raises(UserError, match="has 20 bytes, fewer than the sample's 21"):
        beginning(str(tmp_path / "held.tar"), 21)


def test_the_models_size_is_that_of_what_decompression_needs(trained_run, one_head_run):
    model = bytemtp.load(one_head_run)
    weights = sum(p.numel() for p in model.parameters())
    assert with_model(model, 100, 50) == {"with float32": 16 + 0.64 * weights, "with bfloat16": 16 + 0.32 * weights}
    more = bytemtp.load(trained_run)
    assert with_model(more, 100, 50)["with float32"] < 16 + 0.64 * sum(p.numel() for p in more.parameters())


def test_speeds_are_of_all_parts(trained_run, monkeypatch):
    monkeypatch.setattr(module, "WAYS", QUICK)
    found = speeds(bytemtp.load(trained_run), [b"a rose is a rose\n" * 4, b"is a rose"])
    assert found["one byte a pass, bytes a pass"] == 1 < found["copies, bytes a pass"]
    assert found["heads, bytes/s"] > 0


def test_a_cell_is_scored(trained_run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(module, "WAYS", QUICK)
    monkeypatch.setattr(module, "train", lambda *_: {"minutes": 1.0})
    (tmp_path / "heldout").write_bytes(b"a rose is a rose is a rose\n" * 40)
    cell = cells_of(EXPERIMENT, "cpu", [0])[0]
    cell = replace(cell, options={"train": "", "heldout": "heldout", "sample": 1000, "timed": 100, "parts": 3})
    cell.folder.parent.mkdir(parents=True)
    cell.folder.symlink_to(trained_run)
    figures = score(cell)
    assert figures["bytes"] == 1000 and abs(figures["ours"] - figures["bpb"]) < 8 * 64 / 1000
    assert {*SIZES, "heads, bytes/s", "with float32", "minutes"} <= figures.keys()

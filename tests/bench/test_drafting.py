"""`bench decode --run`: who is measured, what is reported, and that all write the same.  No speed is under test."""

import itertools
import json

import pytest

from bytemtp.bench import __main__ as bench
from bytemtp.bench import drafting
from bytemtp.bench.drafting import Contestant, Measured, Plan, bench_runs
from bytemtp.bench.drafting_table import draw_runs, print_runs
from bytemtp.common.errors import UserError
from bytemtp.decoding import costs
from bytemtp.decoding.corpus_index import CorpusIndex, write_index
from bytemtp.decoding.generate import Generation

TEXTS = {"held-out": [b"The ", b"A "]}


@pytest.fixture(autouse=True)
def alone(monkeypatch, tmp_path):
    """Costs of this test only, no transformers (long to import), and no memory that is read."""
    monkeypatch.setattr(costs, "cache_folder", lambda: tmp_path)
    monkeypatch.setattr(drafting, "find_spec", lambda name: None)
    monkeypatch.setattr(drafting, "read_rate", lambda shape: {"bytes_per_s": 2e9})
    monkeypatch.setattr(drafting, "SETTLE", 0)


@pytest.fixture
def index(tmp_path):
    write_index(tmp_path / "index", [b"a rose is a rose is a rose"])
    return CorpusIndex(tmp_path / "index")


@pytest.mark.parametrize("new", [1, 24])
def test_what_is_reported_of_a_run(trained_run, new, tmp_path, capsys):
    report = bench_runs([trained_run], TEXTS, Plan(new, (1, 2), rounds=2))
    (run,) = report["runs"]
    rows = [(row["temperature"], row["batch"], row["mode"], row["k"]) for row in run["rows"]]
    one = [(1, "ar", 1), (1, "speculative", 2), (1, "speculative", 3), (1, "copy", 1), (1, "auto", 3)]
    two = [(2, "ar", 1), (2, "speculative", 3), (2, "copy", 1), (2, "auto", 3)]
    assert rows == [(t, *each) for t in (0.0, 0.8) for each in one + two]
    assert (report["texts"], report["new"], report["rounds"]) == (2, new, 2)
    for row in run["rows"]:
        assert (row["kind"], row["texts"], row["index"], row["dtype"]) == ("held-out", 2, False, "float32")
        assert row["engine"] in ("native", "torch")
        assert row["bytes_per_s"] > 0 and row["read_bytes_per_s"] == 2e9
        assert row["temperature"] or row["identical"] == 1
        assert (row["behind_prompt"]["bytes_per_forward"] > 0) == (new > 1)
        assert row["mode"] != "ar" or row["speed_up"] == row["over_float32"] == 1
        assert row["mode"] != "ar" or row["behind_prompt"]["bytes_per_forward"] <= 1
        assert (row["of_best_fixed"] is None) == (row["mode"] != "auto")
    costs = [(cost["dtype"], cost["batch"], cost["greedy"]) for cost in run["costs"]]
    assert costs == [("float32", batch, greedy) for batch in (1, 2) for greedy in (False, True)]
    print_runs(report)
    printed = capsys.readouterr().out
    assert len(printed.splitlines()) == 5 + len(rows) and "2.0 to 2.0 GB/s; rounds: 2, of which" in printed
    draw_runs(report, tmp_path / "picture.png")
    assert (tmp_path / "picture.png").stat().st_size > 1000


def test_with_an_index_in_both_arithmetics_all_write_what_plain_decoding_writes(trained_run, index, capsys):
    texts = {"edit": [b"a rose is a tulip", b"no rose", b""], "random": [b"\xff\0"]}
    report = bench_runs([trained_run], texts, Plan(24, (2,), (0.0,), (2,), ("float32", "bfloat16"), index, 1))
    (run,) = report["runs"]
    modes = [("ar", False), ("speculative", False), ("copy", False), ("copy", True), ("auto", False), ("auto", True)]
    rows = [(row["kind"], row["dtype"], row["mode"], row["index"]) for row in run["rows"]]
    assert rows == [(k, d, *mode) for k in texts for d in ("float32", "bfloat16") for mode in modes]
    assert all(row["identical"] == 1 for row in run["rows"])
    costs = [(cost["dtype"], cost["batch"], cost["index"]) for cost in run["costs"]]
    # of three texts, two at a time, one is left
    assert costs == list(itertools.product(("float32", "bfloat16"), (1, 2), (False, True)))
    print_runs(report)
    printed = capsys.readouterr().out
    assert "3 edit texts" in printed and "1 random texts" in printed and printed.count("auto + index") == 4


def test_the_command_measures_what_it_is_asked(trained_run, index, tmp_path):
    text, out, picture = tmp_path / "text", tmp_path / "out.json", tmp_path / "picture.png"
    text.write_bytes(b"a rose is a tulip")
    files = f"--run {trained_run} --files {text} --index {tmp_path / 'index'} --json {out} --figure {picture}"
    options = "--kind random held-out --dtype bfloat16 --prompts 2 --prompt-bytes 9 --new 4 --batches 2 --rounds 1"
    bench.main(f"decode {files} {options} --temperatures 0 0.5 --heads 2".split())
    (run,) = json.loads(out.read_text())["runs"]
    rows = [(row["kind"], row["texts"], row["temperature"], row["dtype"]) for row in run["rows"]]
    kinds = [("random", 2), ("held-out", 1)]
    assert rows == [(*kind, temperature, "bfloat16") for kind in kinds for temperature in (0, 0.5) for _ in range(6)]
    assert all(row["over_float32"] is None for row in run["rows"]) and picture.stat().st_size > 1000


def test_an_index_brings_bytes_a_pass(trained_run, tmp_path):
    (plain,) = drafting.generate_batch(drafting.load_model(trained_run), [b"The "], 24)
    write_index(tmp_path / "own", [b"The " + plain.data])
    plan = Plan(24, (1,), (0.0,), (2,), index=CorpusIndex(tmp_path / "own"), rounds=1)
    rows = bench_runs([trained_run], {"held-out": [b"The "]}, plan)["runs"][0]["rows"]
    passes = {(row["mode"], row["index"]): row["behind_prompt"]["bytes_per_forward"] for row in rows}
    assert passes["copy", True] > max(passes["copy", False], 2)


@pytest.mark.parametrize(
    ("heads", "batch", "expected"),
    [((), 1, [2, 3, 4]), ((), 8, [4]), ((1, 3, 6), 1, [3]), ((1, 3, 6), 8, [3])],
)
def test_numbers_of_heads(heads, batch, expected):
    contestants = Plan(batches=(1, 8), heads=heads).contestants(4, batch)
    assert [each.k for each in contestants if each.mode == "speculative"] == expected


def test_a_run_of_one_head_has_no_heads_to_ask(one_head_run):
    rows = bench_runs([one_head_run], TEXTS, Plan(8, (2,), (0.0,), rounds=1))["runs"][0]["rows"]
    assert [(row["mode"], row["k"]) for row in rows] == [("ar", 1), ("copy", 1), ("auto", 1)]


def out(data, seconds, prompt_seconds=0.0, forwards=1):
    return Generation(data, {"seconds": seconds, "prompt_seconds": prompt_seconds, "forwards": forwards})


def test_contestants_take_turns_and_the_median_round_counts(monkeypatch, one_head_run):
    warm_up, first, second, third = [99, 99], [1, 4, 9, 1], [2, 9, 8, 5], [3, 6, 7, 6]
    calls, times = [], iter([*warm_up, *first, *second, *third])

    def write(self, model, texts, new, temperature):
        calls.append((self.k, texts))
        seconds = float(next(times))
        return [out(b"ab", seconds) for _ in texts]

    monkeypatch.setattr(Contestant, "write", write)
    both, parts = [Contestant("float32", "ar", 1), Contestant("float32", "speculative", 2)], [[b"x", b"y"], [b"z"]]
    measured = drafting._in_turn(drafting.load_model(one_head_run), both, parts, Plan(rounds=3), 0.0)
    turn = [(k, part) for part in parts for k in (1, 2)]
    assert calls == turn[:2] + 3 * turn
    assert [[part[0].stats["seconds"] for part in each.batches] for each in measured] == [[2, 8], [6, 5]]


def test_rates_by_hand():
    """Two batches: of two texts together, and of one."""
    got = Measured([[out(b"abcd", 2.0, 0.5, 3), out(b"a", 2.0, 0.5, 1)], [out(b"abc", 1.0, 0.5, 2)]])
    assert got.rate == 8 / 3
    assert (got.later_bytes, got.later_passes, got.later_rate) == (3 + 0 + 2, 2 + 0 + 1, 5 / 2)


def test_auto_is_compared_with_what_has_no_more_than_it():
    def row(mode, index, rate, dtype="float32"):
        return {"mode": mode, "index": index, "dtype": dtype, "behind_prompt": {"bytes_per_s": float(rate)}}

    rows = [row("ar", False, 10), row("copy", False, 20), row("copy", True, 50), row("ar", False, 90, "bfloat16")]
    autos = [row("auto", False, 19), row("auto", True, 60)]
    shares = [drafting._of_best_fixed(each, rows + autos) for each in (*autos, rows[1])]
    assert shares == [19 / 20, 60 / 50, None]


def test_costs_are_measured_anew_although_some_are_known(trained_run, monkeypatch, tmp_path):
    plan = Plan(4, (1,), (0.0,), (2,), rounds=1)
    known = bench_runs([trained_run], TEXTS, plan)["runs"][0]["costs"]
    (file,) = tmp_path.glob("pass-costs-*.json")
    before = file.read_text()
    real = costs.measure
    slower = lambda *args, **how: costs.Costs([2 * cost for cost in real(*args, **how).passes], 1.0)  # noqa: E731
    monkeypatch.setattr(costs, "measure", slower)
    (again,) = bench_runs([trained_run], TEXTS, plan)["runs"][0]["costs"]
    assert again["heads"] == 1.0 != known[0]["heads"] and file.read_text() != before


def test_all_runs_are_looked_at_before_anything_is_measured(trained_run, tmp_path):
    plan = Plan(8, (1,), (0.0,))
    with pytest.raises(UserError, match="missing"):
        bench_runs([trained_run, tmp_path / "missing"], TEXTS, plan)
    with pytest.raises(UserError, match="heads is 4; the runs have up to 3"):
        bench_runs([trained_run], TEXTS, Plan(8, (1,), (0.0,), (2, 4)))

"""The command in front of the benchmarks: verbs, options, one line for every mistake.  Nothing is measured."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from bytemtp.bench import __main__ as bench
from bytemtp.bench.data import bench_data
from bytemtp.bench.drafting import Plan
from bytemtp.bench.prompts import prompts_of
from bytemtp.bench.shapes import Shape
from bytemtp.common.cli import option_names
from bytemtp.common.errors import UserError
from bytemtp.common.settings import DataConfig

RANDOM = prompts_of("random", (), 2, 256, DataConfig(), 0)


@pytest.fixture
def asked(monkeypatch):
    """What the benchmarks were asked to measure; each answers with a small report."""
    calls = []

    def fake(name):
        def measure(*arguments):
            calls.append((name, arguments))
            return {"bench": name}

        return measure

    for name in ("train", "heads", "memory", "data", "decode", "runs", "execute"):
        monkeypatch.setattr(bench, f"bench_{name}", fake(name))
        monkeypatch.setattr(bench, f"print_{name}", lambda report: None)
    return calls


@pytest.mark.parametrize("spelling", ["--shape.kv-heads", "--shape.kv_heads"])
@pytest.mark.parametrize("form", ["{}=1", "{} 1"])
def test_nested_options_and_both_spellings(asked, spelling, form):
    bench.main(["train", *form.format(spelling).split(), "--shape.dim", "128", "--rounds", "2"])
    assert asked == [("train", (Shape(dim=128, kv_heads=1), 2, 8))]


def test_every_verb_measures_what_it_is_asked(asked, tmp_path):
    bench.main(["heads", "--counts", "4", "8", "--topologies", "causal"])
    bench.main(["memory", "--shape.dim", "64", "--longest", "2048"])
    bench.main(["data", "--megabytes", "1", "2", "--directory", str(tmp_path)])
    bench.main(["decode"])
    (tmp_path / "a").write_bytes(b"a text")
    bench.main(
        ["decode", "--run", "folder", "--files", str(tmp_path / "a"), "--prompt-bytes", "4", "--temperatures", "0.5"]
    )
    bench.main(
        ["decode", "--run", "folder", "--kind", "random", "--prompts", "2", "--dtype", "bfloat16", "--rounds", "5"]
    )
    bench.main(["execute", "--workers", "1"])
    assert asked == [
        ("heads", (Shape(), 3, 8, [4, 8], ["causal"])),
        ("memory", (Shape(64, 32, batch=2), Shape(64, 8, batch=2), ["parallel", "replicated"], 2048)),
        ("data", ([1, 2], tmp_path, 5)),
        ("decode", (3, 256)),
        ("runs", ((Path("folder"),), {"held-out": [b"a te"]}, Plan(temperatures=(0.5,)))),
        ("runs", ((Path("folder"),), {"random": RANDOM}, Plan(dtypes=("bfloat16",), rounds=5))),
        ("execute", (None, 1, 3, 2)),
    ]


def test_the_report_is_kept(asked, tmp_path):
    bench.main(["train", "--json", str(tmp_path / "out.json")])
    assert json.loads((tmp_path / "out.json").read_text()) == {"bench": "train"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["trian"], "unknown verb 'trian' of bytemtp.bench; did you mean 'train'?"),
        (["zzz"], "choose from train, heads, memory, data, decode, execute"),
        (["train", "--shape.dmi", "8"], "did you mean '--shape.dim'?"),
        (["train", "--shape.dim", "x"], "--shape.dim"),
        (["train", "--counts", "8"], "unknown setting '--counts'"),
        (["train", "more"], "more"),
        (["train", "--rounds", "0"], "rounds is 0; it must be 1 or more"),
        (["heads", "--counts", "8", "0"], "counts is (8, 0); it must be 1 or more"),
        (["heads", "--topologies", "spiral"], "'spiral'"),
        (["decode", "--run", "folder"], "give --files PATH ..."),
        (["decode", "--run", "folder", "--kind", "random", "edit"], "give --files PATH ..."),
        (["decode", "--figure", "a.png"], "--figure goes with --run"),
        (["decode", "--files", "a"], "--files goes with --run"),
        (["decode", "--index", "a"], "--index goes with --run"),
        (["decode", "--kind", "edit"], "--kind goes with --run"),
        (["decode", "--dtype", "bfloat16"], "--dtype goes with --run"),
        (["decode", "--batches", "16"], "--batches goes with --run"),
        (["memory", "--shape.layers", "4"], "8 parallel heads have 8 layers; raise model.layers"),
        (["heads", "--shape.layers", "4"], "8 parallel heads have 8 layers; raise model.layers"),
        (["memory", "--longest", "512"], "longest is 512; it must be 1024 or more"),
        (["decode", "--run", "folder", "--files", "a", "--kind", "edited"], "'edited'"),
        (["decode", "--run", "folder", "--files", "a", "--kind"], "kind has no value"),
        (["decode", "--run", "folder", "--files", "a", "--dtype", "float16"], "'float16'"),
        (
            ["decode", "--run", "folder", "--files", "a", "--index", "/no/such"],
            "cannot read the index /no/such: No such",
        ),
        (["decode", "--run", "folder", "--files", "a", "--index", __file__], "is no index of this version"),
        (["decode", "--run", "/no/such", "--files", "a", "--kind", "edit"], "/no/such is not a run"),
        (["decode", "--run", "folder", "--files", "a", "--prompt-bytes", "0"], "prompt_bytes is 0"),
        (["decode", "--run", "folder", "--files", "a", "--batches"], "batches has no value"),
        (["decode", "--run", "folder", "--files", "a", "--temperatures"], "temperatures has no value"),
        (
            ["decode", "--run", "folder", "--kind", "random", "--temperatures", "0", "-1"],
            "temperature is -1.0; it must",
        ),
        (["train", "--shape.dim", "100", "--shape.heads", "3"], "model.attention_heads is 3"),
        (["heads", "--counts"], "counts has no value"),
        (["data", "--json", "/no/such/place"], "cannot write /no/such/place: No such file or directory"),
        (["memory", "--figure", "/no/such/place.png"], "cannot write /no/such/place.png: No such file"),
        (["memory", "--figure", "place.gif"], "its ending must be one of .png, .svg, .pdf"),
    ],
)
def test_a_mistake_is_one_line_before_anything_is_measured(asked, arguments, message):
    with pytest.raises(UserError) as error:
        bench.main(arguments)
    assert message in str(error.value) and "\n" not in str(error.value)
    assert not asked


def test_a_directory_that_cannot_be_made():
    with pytest.raises(UserError, match="cannot write /dev/null/x: Not a directory"):
        bench_data([1], Path("/dev/null/x"), 1)


def test_help_shows_every_verb_and_an_example(capsys):
    for arguments in (["--help"], ["-h"], []):
        bench.main(arguments)
        printed = capsys.readouterr().out
        assert all(f"\n  {verb} " in printed for verb in bench.VERBS)
        assert "python -m bytemtp.bench train --rounds 3 --shape.dim 128 --json train.json" in printed


@pytest.mark.parametrize("verb", bench.VERBS)
def test_every_verb_explains_all_its_options(verb, capsys):
    with pytest.raises(SystemExit, match="0"):
        bench.main([verb, "--help"])
    printed = capsys.readouterr().out
    assert f"python -m bytemtp.bench {verb} " in printed
    assert all(f"{name} " in printed for name in option_names(bench.VERBS[verb]))


def test_exit_code_from_outside():
    program = [sys.executable, "-m", "bytemtp.bench", "train", "--runds", "3"]
    done = subprocess.run(program, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "error: unknown setting '--runds' in the command line; did you mean '--rounds'?\n"

"""`bench quality`: the peer is scored byte by byte, intervals are Student's, a finished cell is not trained again."""

import io
import itertools
import json
import math
import subprocess
import sys
from contextlib import redirect_stdout
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from bytemtp.bench import __main__ as bench
from bytemtp.bench import nano_gpt, quality
from bytemtp.bench.nano_gpt import BATCH, BOUNDARY, CONTEXT, LAYERS, STRIDE, WIDTH, NanoGPT, random_rows
from bytemtp.common.errors import UserError
from bytemtp.common.settings import DataConfig


def outspoken() -> NanoGPT:
    """Large weights, so that context and place change what it predicts."""
    model = NanoGPT(seed=1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(5)
    return model.eval()


MODEL = outspoken()


@torch.no_grad()
def slow_nats(documents: list[bytes]) -> list[float]:
    """One forward pass a byte, over the context that its window gives it."""
    nats = []
    for document in documents:
        text = [BOUNDARY, *document]
        for p in range(len(document)):
            begin = 0 if p < CONTEXT else p // STRIDE * STRIDE - STRIDE
            assert p + 1 - begin > STRIDE or begin == 0
            logits = MODEL(torch.tensor([text[begin : p + 1]]))[0, -1].double()
            nats.append(-logits.log_softmax(0)[text[p + 1]].item())
    return nats


def joined(documents: list[bytes]) -> tuple[torch.Tensor, list[int]]:
    ends = list(itertools.accumulate(len(document) + 1 for document in documents))
    text = b"".join(document + bytes([BOUNDARY]) for document in documents)
    return torch.tensor(list(text), dtype=torch.uint8), [end - 1 for end in ends]


@settings(max_examples=10)
@given(st.lists(st.binary(max_size=8) | st.binary(min_size=60, max_size=100), min_size=1, max_size=3))
@example([b"x" * (CONTEXT + i) for i in (-1, 0, 1)])
@example([b"", b"\n", b"", bytes(range(97))])
def test_the_peer_is_scored_as_one_byte_at_a_time(documents):
    nats, count = nano_gpt.score(MODEL, *joined(documents))
    slow = slow_nats(documents)
    assert count == len(slow)
    assert nats == pytest.approx(sum(slow), rel=1e-4, abs=1e-4)


def test_documents_are_read_as_ours_are(tmp_path):
    file = tmp_path / "a.jsonl"
    file.write_text('{"t": "one"}\n{"t": ""}\n{"t": "\\ntwo"}\n')
    octets, ends = nano_gpt.read([str(file)], DataConfig(text_field="t"))
    assert (bytes(octets.tolist()), ends) == (b"one\n\n\ntwo\n", [3, 4, 9])


def test_the_peer_has_the_published_shape():
    model = NanoGPT(seed=0)
    layer = 12 * WIDTH**2 + 2 * WIDTH
    assert sum(p.numel() for p in model.parameters()) == (256 + CONTEXT) * WIDTH + LAYERS * layer + WIDTH
    assert model.blocks[0].up.weight.std().item() == pytest.approx(0.02, rel=0.05)
    assert model.blocks[0].down.weight.std().item() == pytest.approx(0.02 / math.sqrt(2 * LAYERS), rel=0.05)
    ids = torch.randint(256, (2, CONTEXT))
    other = ids.clone()
    other[:, 40:] = 7
    torch.testing.assert_close(model(ids)[:, :40], model(other)[:, :40])
    decayed, scales = nano_gpt.adamw(model).param_groups
    assert (len(decayed["params"]), decayed["weight_decay"]) == (2 + 4 * LAYERS, 0.1)
    assert (len(scales["params"]), scales["weight_decay"]) == (1 + 2 * LAYERS, 0.0)


def test_the_peer_learns_until_its_minutes_are_over(monkeypatch):
    ticks = itertools.count()
    monkeypatch.setattr(nano_gpt, "time", SimpleNamespace(monotonic=lambda: next(ticks) / 10))
    monkeypatch.setattr(nano_gpt, "BATCH", 2)
    rates = []
    set_rate = nano_gpt.set_learning_rate
    monkeypatch.setattr(nano_gpt, "set_learning_rate", lambda o, rate: (rates.append(rate), set_rate(o, rate)))
    text = [b"ab" * 200]
    model, steps = nano_gpt.train(joined(text)[0], minutes=0.2, seed=0)
    assert steps == 120
    assert rates[0] == pytest.approx(1e-5) and max(rates) > 0.95e-3
    peak = rates.index(max(rates))
    assert 5 < peak < 15, "a tenth of the run at most"
    assert rates[:peak] == sorted(rates[:peak]) and rates[peak:] == sorted(rates[peak:], reverse=True)
    assert rates[-1] == pytest.approx(1e-4, rel=0.01)
    nats, count = nano_gpt.score(model, *joined(text))
    assert nats / count / math.log(2) < 0.5


def test_rows_come_from_everywhere_and_by_seed():
    octets = torch.arange(CONTEXT + 3, dtype=torch.uint8)
    rows = torch.cat(list(itertools.islice(random_rows(octets, 0), 10)))
    assert rows.shape == (10 * BATCH, CONTEXT + 1) and set(rows[:, 0].tolist()) == {0, 1, 2}
    assert torch.equal(next(random_rows(octets, 0)), rows[:BATCH])
    assert not torch.equal(next(random_rows(octets, 1)), rows[:BATCH])


def test_interval_of_a_known_example():
    """Student's own (1908): hours of sleep gained by ten patients, one drug minus the other; R prints 0.70 to 2.46."""
    found = quality.spread([1.2, 2.4, 1.3, 1.3, 0.0, 1.0, 1.8, 0.8, 4.6, 1.4])
    assert found["mean"] == pytest.approx(1.58) and found["sd"] == pytest.approx(1.229995, rel=1e-5)
    assert found["interval"] == pytest.approx([0.7001142, 2.4598858], abs=5e-4)
    assert quality.spread([1.0]) == {"mean": 1.0, "sd": None, "interval": None, "by_seed": [1.0]}
    assert quality.spread([1.0, 2.0])["interval"] is None
    many = quality.spread([float(i % 2) for i in range(100)])
    assert many["interval"][1] - 0.5 == pytest.approx(2.042 * many["sd"] / 10)


@pytest.mark.parametrize("freedom", range(2, 31))
def test_quantiles_leave_a_fortieth_above_them(freedom):
    """The density, integrated from 0 by the midpoint rule."""
    scale = math.gamma((freedom + 1) / 2) / (math.gamma(freedom / 2) * math.sqrt(freedom * math.pi))
    limit, pieces = quality.STUDENT[freedom - 1], 2000
    places = [limit * (i + 0.5) / pieces for i in range(pieces)]
    inside = sum(scale * (1 + t * t / freedom) ** (-(freedom + 1) / 2) for t in places) * limit / pieces
    assert inside == pytest.approx(0.475, abs=3e-5)


@pytest.fixture
def files(tmp_path: Path) -> list[str]:
    """Options that name a corpus, its held-out part and a new directory."""
    (tmp_path / "train.txt").write_bytes(b"a rose is a rose is a rose\n" * 100)
    heldout = tmp_path / "heldout.jsonl"
    heldout.write_text("".join(f'{{"text": "{"a rose is no daisy " * i}"}}\n' for i in range(6)))
    options = {"train": tmp_path / "train.txt", "heldout": heldout, "directory": tmp_path / "cells"}
    return [word for name, value in options.items() for word in (f"--{name}", str(value))]


SMALL = ["--minutes", "0.005", "--preset", "nano", "--seeds", "0", "1", "2", "--heads", "1", "2"]


def instead(words, options):
    """`options` behind those of `words` that they do not name again."""
    kept, is_kept = [], True
    for word in words:
        is_kept = word not in options if word.startswith("--") else is_kept
        kept += [word] * is_kept
    return [*kept, *options]


@pytest.fixture
def in_this_process(monkeypatch):
    """Commands are called, not started: importing torch takes seconds.  Gives the list of their names."""
    called = []

    def run_module(place: Path, module: str, *arguments: str) -> str:
        called.append(module)
        monkeypatch.setattr(sys, "argv", [module, *arguments])
        command = import_module(module).main
        with redirect_stdout(io.StringIO()) as printed:
            command() if module.endswith("nano_gpt") else command(arguments)
        return printed.getvalue()

    monkeypatch.setattr(quality, "run_module", run_module)
    return called


def test_all_cells_once_and_what_is_reported(files, in_this_process, tmp_path, capsys):
    command = ["quality", *files, *SMALL, "--ours", "model.dim=16", "train.seq-len=32", "train.dtype=float32"]
    bench.main([*command, "--json", str(tmp_path / "report.json")])
    printed = capsys.readouterr().out
    ours = ["bytemtp.train", "bytemtp.evaluate"]
    assert in_this_process == [*ours, *ours, "bytemtp.bench.nano_gpt"] * 3
    report = json.loads((tmp_path / "report.json").read_text())
    size = 19 * sum(range(6))
    assert (report["bytes"], report["documents"]) == (size, 6)
    assert all((cell["bytes"], cell["documents"]) == (size, 6) for cell in report["cells"])
    assert list(report["contestants"]) == ["ours n=1", "ours n=2", "peer"]
    assert [len(result["bpb_per_head"]) for result in report["contestants"].values()] == [1, 2, 0]
    check_numbers(report)
    assert "seq_len = 32" in (tmp_path / "cells/ours-n2-seed1/config.toml").read_text()
    assert all(word in printed for word in ("ours n=2 - ours n=1", "ours n=1 - peer", "xz-9", "+-", "by head", " to "))

    in_this_process.clear()
    (tmp_path / "cells/peer-seed1.json").unlink()
    bench.main(command)
    assert in_this_process == ["bytemtp.bench.nano_gpt"]
    with pytest.raises(
        UserError, match=r"ours-n1-seed0.json was measured with minutes = 0.005, not 0.01; name another"
    ):
        bench.main([*command, "--minutes", "0.01"])
    (tmp_path / "cells/peer-seed1.json").write_text("[]")
    with pytest.raises(UserError, match=r"peer-seed1.json is no result of bench quality .*; delete it"):
        bench.main(command)


def check_numbers(report):
    by_name = {name: result["bpb"]["by_seed"] for name, result in report["contestants"].items()}
    for cell in report["cells"]:
        assert cell["bpb"] == by_name[cell["contestant"]][cell["seed"]]
        assert 0 < cell["bpb"] < 12 and cell["steps"] > 0 and cell["bytes_seen"] > 0
    pairs = [("ours n=2", "ours n=1"), ("ours n=1", "peer")]
    assert [(d["of"], d["minus"]) for d in report["differences"]] == pairs
    for difference in report["differences"]:
        of, minus = by_name[difference["of"]], by_name[difference["minus"]]
        assert difference["by_seed"] == pytest.approx([a - b for a, b in zip(of, minus, strict=True)])
        low, high = difference["interval"]
        assert low < difference["mean"] < high


def test_cells_of_other_bytes_are_not_compared():
    plan = quality.Plan(("a",), ("b",), 1.0, (0,), "nano", (1,), ())
    cells = [{"contestant": name, "bytes": size, "documents": 1} for name, size in (("ours n=1", 5), ("peer", 6))]
    with pytest.raises(UserError, match="held-out files have changed"):
        quality.summary(plan, cells)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--train"], "train has no value; give one or more"),
        (["--heldout"], "heldout has no value; give one or more"),
        (["--heads"], "heads has no value"),
        (["--heads", "1", "0"], "heads is (1, 0); it must be 1 or more"),
        (["--heads", "33"], "model.n_future is 33; it must be from 1 to 32"),
        (["--seeds"], "seeds has no value"),
        (["--seeds", "1", "1"], "seeds is (1, 1); name each once"),
        (["--seeds", "-1"], "train.seed is -1"),
        (["--minutes", "0"], "minutes is 0.0; it must be above 0"),
        (["--preset", "giant"], "unknown preset 'giant'"),
        (["--ours", "train.lr"], "--ours train.lr: give settings as NAME=VALUE, such as train.lr=0.002"),
        (["--ours", "train.lrr=1"], "unknown setting '--train.lrr'"),
        (["--ours", "train.lr=fast"], "fast"),
        (["--ours", "model.n-future=3"], "--ours model.n-future=3: the option --heads is for that"),
        (["--ours", "data.exclude=b*"], "--ours data.exclude=b*: the peer would read other bytes"),
        (["--ours", "data.valid-paths=a"], "--ours data.valid-paths=a: the peer would read other bytes"),
        (["--ours", "data.weights=1"], "--ours data.weights=1: the peer would read other bytes"),
        (["--train", "/no/such/file"], "/no/such/file: no such file or folder"),
        (["--heldout", "-"], "- (standard input) can be read only once"),
        (["--directory", "/dev/null/cells"], "cannot write /dev/null/cells"),
    ],
)
def test_a_mistake_is_one_line_before_anything_is_trained(files, in_this_process, options, message):
    with pytest.raises(UserError) as error:
        bench.main(["quality", *instead([*files, *SMALL], options)])
    assert message in str(error.value) and "\n" not in str(error.value)
    assert not in_this_process


def test_a_file_cannot_be_trained_on_and_held_out(files, in_this_process):
    with pytest.raises(UserError, match=r"train.txt is to be trained on and held out"):
        bench.main(["quality", *instead([*files, *SMALL], ["--heldout", *files[1:4:2]])])


def test_the_peer_needs_more_than_its_context():
    with pytest.raises(UserError, match="the training files have 64 bytes; the peer needs more than 64"):
        nano_gpt.train(torch.zeros(64, dtype=torch.uint8), 1.0, 0)


def test_a_command_that_fails_is_told_with_its_last_words(tmp_path):
    with pytest.raises(UserError, match=r"bytemtp.evaluate failed, see .*cell.log: unknown verb 'bqb'"):
        quality.run_module(tmp_path / "cell", "bytemtp.evaluate", "bqb")


@pytest.mark.slow
def test_from_outside(files):
    """In processes of its own, as users call it."""
    words = instead([*files, *SMALL], ["--seeds", "4", "--heads", "2"])
    program = [sys.executable, "-m", "bytemtp.bench", "quality", *words]
    done = subprocess.run(program, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "ours n=2 - peer" in done.stdout and "2/2  peer, seed 4: " in done.stderr
    folder = Path(files[5])
    left = {path.name for path in folder.iterdir()}
    assert left == {
        "ours-n2-seed4",
        *(f"{cell}-seed4.{kind}" for cell in ("ours-n2", "peer") for kind in ("json", "log")),
    }
    again = subprocess.run(program, capture_output=True, text=True)
    assert again.stdout == done.stdout

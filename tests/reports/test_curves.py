"""`python -m bytemtp.report`: what is drawn are the run's own numbers."""

import html
import io
import json
import math
import os
import re
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from bytemtp import report
from bytemtp.common.cli import run_main
from bytemtp.common.errors import UserError
from bytemtp.reports import curves as curves_module
from bytemtp.reports.curves import plot_runs, read_history, run_table, smooth
from bytemtp.reports.figures import inline_svg, save_picture
from bytemtp.reports.html import printable


def line(step: int, split: str, bpb: list[float | None]) -> dict[str, object]:
    return {
        "step": step,
        "split": split,
        "bpb_per_head": bpb,
        "bytes_seen": 1000 * step,
        "bytes_per_s": 2000.0,
        "elapsed_s": 30.0 * step,
    }


def write_run(folder: Path, heads: int, steps: int = 40, valid: bool = True) -> Path:
    """A run whose bits per byte fall with the steps and rise with the head."""
    folder.mkdir()
    lines = []
    for step in range(1, steps + 1):
        bits = [1 + i / 10 + 5 / step for i in range(heads)]
        lines.append(line(step, "train", bits))
        if valid and step % 10 == 0:
            lines.append(line(step, "valid", [x + 0.01 for x in bits]))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in lines))
    return folder


def test_real_run(trained_run, tmp_path, capsys):
    report.main([str(trained_run), "--out", str(tmp_path / "picture.png")])
    assert (tmp_path / "picture.png").read_bytes().startswith(b"\x89PNG")
    printed = capsys.readouterr().out
    assert str(trained_run) in printed and str(tmp_path / "picture.png") in printed


@pytest.mark.parametrize("ending", ["png", "svg", "pdf"])
def test_format_follows_the_ending(tmp_path, ending):
    run = write_run(tmp_path / "run", heads=2)
    out = tmp_path / f"picture.{ending}"
    report.main([str(run), "--out", str(out)])
    assert out.read_bytes().startswith({"png": b"\x89PNG", "svg": b"<?xml", "pdf": b"%PDF"}[ending])


def test_default_place_is_in_the_first_run(tmp_path):
    runs = [write_run(tmp_path / name, heads) for name, heads in (("n1", 1), ("n8", 8))]
    report.main([str(run) for run in runs])
    assert (runs[0] / "report.png").exists() and not (runs[1] / "report.png").exists()


@pytest.mark.parametrize("heads", [1, 3, 8, 32])
def test_one_run_shows_every_head(tmp_path, heads):
    history = read_history(write_run(tmp_path / "run", heads))
    curves, by_head, speed = plot_runs([history]).axes[:3]
    lines = [drawn for drawn in curves.lines if drawn.get_linestyle() == "-"]
    dots = [drawn for drawn in curves.lines if drawn.get_linestyle() == "None"]
    assert len(lines) == len(dots) == heads
    np.testing.assert_allclose(dots[-1].get_ydata(), history.valid.bpb[:, -1])
    np.testing.assert_allclose(by_head.lines[0].get_ydata(), history.valid.bpb[-1])
    np.testing.assert_allclose(speed.lines[0].get_ydata(), 2.0)
    assert (curves.get_legend() is not None) == (heads <= curves_module.LABELLED_HEADS)


def test_several_runs_show_the_first_head_of_each(tmp_path):
    histories = [read_history(write_run(tmp_path / str(n), n)) for n in (1, 4, 32)]
    curves, by_head, _ = plot_runs(histories).axes
    labels = [text.get_text() for text in curves.get_legend().get_texts()]
    assert [label.rpartition(" ")[2] for label in labels] == ["1", "4", "32"]
    assert len({drawn.get_color() for drawn in by_head.lines}) == 3
    assert [len(drawn.get_xdata()) for drawn in by_head.lines] == [1, 4, 32]


def test_a_single_line_of_training_is_a_dot(tmp_path):
    """A line through one point has no length."""
    for steps, dot in ((1, "."), (2, "None")):
        curves, _, speed = plot_runs([read_history(write_run(tmp_path / str(steps), 2, steps=steps))]).axes
        assert {drawn.get_marker() for drawn in (*curves.lines, *speed.lines)} == {dot}


NAMES = ["_run", "__", "a$b$c", "$x_1$", "a\\$b", "100%", "<b>&amp;", "two\nlines", "\udcff", "é\udcc3", "\ud800"]
"""Names of folders that matplotlib, HTML or a terminal would take for something else; some are no UTF-8."""


def test_what_cannot_be_seen_is_escaped_without_doubt():
    assert printable("a\x1b\udcff\u200b\U000e0001\tb") == r"a\x1b\xff\u200b\U000e0001" + "\tb"


def test_names_are_shown_as_they_are(tmp_path):
    """In the legend, which leaves labels with _ in front out, and above the picture; $ begins no formula there."""
    history = read_history(write_run(tmp_path / "run", heads=1, steps=3))
    several, one = (
        plot_runs([replace(history, name=name) for name in NAMES]),
        plot_runs([replace(history, name="$_a$")]),
    )
    texts = [html.unescape(text) for text in re.findall("<text[^>]*>([^<]*)</text>", str(inline_svg(several, "runs")))]
    shown = [f"{printable(name, keep='')}, n = 1" for name in NAMES]
    assert [text.strip() for text in texts if text.endswith(", n = 1")] == shown
    assert ">$_a$<" in str(inline_svg(one, "run"))
    for ending in (".png", ".pdf"):
        save_picture(several, tmp_path / f"picture{ending}")


def test_a_run_whose_name_is_no_text_is_reported(tmp_path, monkeypatch):
    """Its name used to end the table with a traceback."""
    runs = [write_run(tmp_path / os.fsdecode(name), heads=1, steps=3) for name in (b"\xff$_", b"_b")]
    printed = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(printed, encoding="utf-8", errors="strict"))
    run_main(lambda: report.main([*map(str, runs)]))
    sys.stdout.flush()
    assert os.fsencode(runs[0]) in printed.getvalue()
    assert (runs[0] / "report.png").exists()


def test_table_ends_where_the_run_did(tmp_path):
    validated = read_history(write_run(tmp_path / "a", heads=2))
    unvalidated = read_history(write_run(tmp_path / "b", heads=1, valid=False))
    _, first, second = run_table([validated, unvalidated]).splitlines()
    assert first.split() == [str(tmp_path / "a"), "40", "0.0", "20.0", "2.0", "valid", "1.135", "1.235"]
    assert second.split() == [str(tmp_path / "b"), "40", "0.0", "20.0", "2.0", "train", "1.125"]


def test_a_head_without_targets_is_a_gap(tmp_path):
    """Documents of one byte leave far heads nothing to predict; the trainer then writes null."""
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "metrics.jsonl").write_text(json.dumps(line(1, "train", [2.0, None])) + "\n")
    history = read_history(folder)
    assert math.isnan(history.train.bpb[0, 1])
    assert run_table([history]).splitlines()[1].endswith("2.000 -")
    plot_runs([history])


def test_a_line_that_is_still_being_written_is_left_out(tmp_path):
    run = write_run(tmp_path / "run", heads=1, steps=5)
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 6, "split": "tr')
    assert len(read_history(run).train) == 5


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "holds no training line yet"),
        ('{"step": 1\n', "line 1 is no JSON"),
        ('{"step": 1, "split": "train"}\n', "is not what"),
    ],
)
def test_damaged_metrics_are_one_clear_line(tmp_path, text, message):
    (tmp_path / "metrics.jsonl").write_text(text)
    with pytest.raises(UserError, match=message):
        report.main([str(tmp_path)])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "no RUN given"),
        (["missing"], "cannot read missing/metrics.jsonl"),
        (["RUN", "--out", "picture.gif"], "must be one of .png, .svg, .pdf"),
        (["RUN", "--out", "missing/picture.png"], "cannot write missing/picture.png"),
        (["RUN", "--uot", "picture.png"], "did you mean '--out'"),
    ],
)
def test_bad_input_is_one_clear_line(tmp_path, arguments, message):
    run = write_run(tmp_path / "run", heads=1)
    with pytest.raises(UserError) as caught:
        report.main([str(run) if word == "RUN" else word for word in arguments])
    assert message in str(caught.value)


def test_smoothing_keeps_a_straight_end_and_the_first_point():
    values = np.linspace(8, 1, 200)
    result = smooth(values)
    assert result[0] == 8
    np.testing.assert_allclose(result[:190], values[:190])
    assert np.abs(result[190:] - values[190:]).max() < 0.2
    assert np.std(smooth(np.random.default_rng(0).normal(size=500))) < 0.4


def test_a_head_that_begins_late_is_smoothed_and_framed_by_itself(tmp_path):
    """Its fall from 8 bits in mid-run is left out of the picture like that of head 1, and its line begins with it."""
    run = tmp_path / "run"
    run.mkdir()
    far = [None] * 100 + [8.0, 7.0, 6.0] + [3.0] * 97
    lines = [line(i, "train", [max(2.0, 8.0 - i), bits]) for i, bits in enumerate(far)]
    (run / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in lines))
    assert 3 < plot_runs([read_history(run)]).axes[0].get_ylim()[1] < 3.5
    smoothed = smooth(np.array([np.nan if bits is None else bits for bits in far]))
    assert np.isnan(smoothed[:100]).all() and smoothed[100] == 8 and np.isfinite(smoothed[100:]).all()


def test_a_run_without_any_finite_number_is_drawn_empty(tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    (run / "metrics.jsonl").write_text("".join(json.dumps(line(i, "train", [None, None])) + "\n" for i in (1, 2)))
    plot_runs([read_history(run)])

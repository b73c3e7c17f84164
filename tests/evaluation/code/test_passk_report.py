"""The report on pass@k: its numbers, its figure, and a page that a browser shows without asking for anything."""

import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bytemtp.common.errors import UserError
from bytemtp.evaluation.code import report
from bytemtp.evaluation.code.problems import Problem, problem_of
from bytemtp.evaluation.code.report import page, passk_table, plot_passk, write_report
from bytemtp.evaluation.code.score import summarise

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
HOSTILE = "</pre><script>document.title = 'hacked'</script><img src=x onerror=\"document.title='hacked'\">&lt;"
VOID = {"meta", "img", "br"}


def problems(count: int = 4) -> list[Problem]:
    return [
        problem_of(
            {
                "task_id": f"<i>task</i>/{number}",
                "prompt": f'def f(x):\n    """{HOSTILE}"""\n',
                "entry_point": "f",
                "canonical_solution": "    return x < 1 & x\n",
                "test": "def check(candidate):\n    assert candidate(1)\n",
                "family": ("<b>bold</b>", "plain")[number % 2],
            }
        )
        for number in range(count)
    ]


def results(temperatures: tuple[float, ...] = (0.2, 0.8), count: int = 4, samples: int = 10) -> list[dict[str, Any]]:
    """Of each ten samples of problem p, p are right at 0.2 and 2 p at 0.8."""
    lines = []
    for temperature in temperatures:
        for number in range(count):
            for i in range(samples):
                good = i < number * (1 if temperature < 0.5 else 2)
                lines.append(
                    {
                        "task_id": f"<i>task</i>/{number}",
                        "completion": "    return x\n" if good else HOSTILE + "\ud800",
                        "temperature": temperature,
                        "top_p": 0.95,
                        "index": i,
                        "passed": good,
                        "result": "passed" if good else f"failed: AssertionError: {HOSTILE}",
                    }
                )
    return lines


@pytest.fixture
def summary() -> dict[str, Any]:
    return summarise(problems(), results(), [1, 10]) | {"seconds": 2.0, "programs_per_s": 40.0}


def test_table(summary: dict[str, Any]) -> None:
    header, cold, warm, best, note, _, counts = passk_table(summary).splitlines()
    assert header.split() == ["temperature", "top-p", "pass@1", "pass@10"]
    assert re.fullmatch(r"0\.2 +0\.95 +15\.0 \(\d+\.\d-\d+\.\d\) +75\.0 \(\d+\.\d-\d+\.\d\)", cold)
    assert warm.startswith("0.8 ") and " 30.0 (" in warm
    assert best.split() == ["oracle*", "30.0", "at", "0.8/0.95", "75.0", "at", "0.2/0.95"]
    assert "upper bound, not a result" in note
    assert counts.startswith("4 problems, 80 samples, executed in 2.0 s at 40.0 programs/s")


def test_no_oracle_over_a_single_cell() -> None:
    single = summarise(problems(), results((0.8,)), [1, 10])
    assert "oracle" not in passk_table(single) and "oracle" not in body_of(page(single, [], problems()))


def test_figure(summary: dict[str, Any]) -> None:
    over_k, over_temperature = plot_passk(summary).axes
    assert [list(line.get_xdata()) for line in over_k.lines] == [[1, 10], [1, 10]]
    np.testing.assert_allclose([line.get_ydata() for line in over_k.lines], [[15, 75], [30, 75]])
    assert [list(line.get_xdata()) for line in over_temperature.lines] == [[0.2, 0.8], [0.2, 0.8]]
    np.testing.assert_allclose([line.get_ydata() for line in over_temperature.lines], [[15, 30], [75, 75]])
    labels = [text.get_text() for text in over_temperature.get_legend().get_texts()]
    assert labels == ["pass@1", "pass@10"]
    assert len(plot_passk(summarise(problems(), results((0.8,)), [1])).axes) == 1


class Checker(HTMLParser):
    """Tags that are not closed, tags by name, and attributes that load or run something."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[str] = []
        self.loads: list[str] = []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.seen.append(tag)
        if tag not in VOID:
            self.open.append(tag)
        for name, value in attributes:
            if name.startswith("on") or (name in ("src", "href", "xlink:href") and not str(value).startswith("#")):
                self.loads.append(f"{tag} {name}={value}")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def body_of(text: str) -> str:
    return text[text.index("<body>") :]


def test_page_is_well_formed_and_escapes_everything(summary: dict[str, Any]) -> None:
    text = page(summary, results(), problems())
    checker = Checker()
    checker.feed(text)
    checker.close()
    assert checker.open == [] and checker.loads == []
    assert not {"script", "link", "iframe", "i"} & set(checker.seen)
    assert checker.seen.count("svg") == 1
    assert checker.seen.count("b") == checker.seen.count("details") == 4  # ours: the task's name
    assert not re.search(r"url\((?!#)", text) and "@import" not in text
    assert text.count("&lt;/pre&gt;&lt;script&gt;") >= 8
    assert "\\ud800" in text and text.encode()


def test_page_shows_the_numbers(summary: dict[str, Any]) -> None:
    text = page(summary, results(), problems())
    for shown in ("15.0 (", "30.0 (", "executed in 2.0 s", "&lt;b&gt;bold&lt;/b&gt;", "upper bound, not a result"):
        assert shown in text
    assert "The first failing sample of 4 of 4 problems that have one." in text


def test_only_so_many_failures_are_shown(monkeypatch: pytest.MonkeyPatch, summary: dict[str, Any]) -> None:
    monkeypatch.setattr(report, "SHOWN_FAILURES", 3)
    monkeypatch.setattr(report, "SHOWN_CHARACTERS", 10)
    text = page(summary, results(), problems())
    assert text.count("<details>") == 3 and "of 3 of 4 problems" in text and "&lt;/pre&gt;&lt;scr ..." in text


def test_nothing_failed() -> None:
    right = [line | {"passed": True, "result": "passed"} for line in results((0.8,))]
    text = page(summarise(problems(), right, [1]), right, problems())
    assert "<details>" not in text and "of 0 of 0 problems" in text


def test_unwritable(tmp_path: Path, summary: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="cannot write the report to"):
        write_report(tmp_path / "missing", summary, results(), problems())


@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
def test_in_a_browser(tmp_path: Path, summary: dict[str, Any]) -> None:
    """Nothing that a sample wrote runs, nothing is asked for, and the figure is seen."""
    write_report(tmp_path, summary, results(), problems())
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    probe = "<script>document.body.dataset.picture = document.querySelector('svg').clientWidth</script></body>"
    text = re.sub("<meta http-equiv=[^>]*>", "", text)  # the page itself lets no script run
    (tmp_path / "probed.html").write_text(text.replace("</body>", probe), encoding="utf-8")
    flags = [
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--enable-logging=stderr",
        f"--user-data-dir={tmp_path / 'u'}",
    ]
    command = [str(CHROMIUM), *flags, "--virtual-time-budget=2000", "--dump-dom", f"file://{tmp_path / 'probed.html'}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    assert "<title>pass@k</title>" in done.stdout
    assert re.search(r'data-picture="\d{3,}"', done.stdout)
    assert "CONSOLE" not in done.stderr and "ERR_" not in done.stderr

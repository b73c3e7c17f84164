"""The page shows exactly the bytes, names each one's draft and pass, loads nothing, and can be read in any light."""

import html
import json
import os
import re
import shutil
import subprocess
import sys
import unicodedata
from html.parser import HTMLParser
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

import bytemtp
from bytemtp.common.errors import UserError
from bytemtp.decoding.generate import Generation
from bytemtp.generate import __main__ as command
from bytemtp.reports.html import GROUNDS, THEMES, printable
from bytemtp.reports.page import PROMPT_SHOWN, acceptance_chart, page, pass_chart, pass_sizes

PALETTES = {theme: [colours[f"g{i}"] for i in range(GROUNDS)] for theme, colours in THEMES.items()}

TEXTS = st.lists(
    st.one_of(st.binary(max_size=4), st.text(st.characters(exclude_categories=["Cs"]), max_size=4).map(str.encode)),
    max_size=8,
).map(b"".join)
AWKWARD = (
    "<script>alert(1)</script>&amp;\"' \t\n\n\x00\x1b[31m\u202e e\u0301 é€😀\u200d\\x41\r\n".encode() + b"\xff\xe2\x82"
)


@st.composite
def generations(draw):
    """Arguments of `generation`."""
    data = draw(TEXTS)
    return data, draw(st.lists(st.integers(0, 11), min_size=len(data), max_size=len(data)))


def generation(data: bytes, drafts=(3, 0, 1, 11, 2)) -> tuple[Generation, list[int]]:
    """Passes of so many accepted drafts, and one byte of head 1 after them, until the bytes are used up."""
    origins, sizes, turn = [], [], 0
    while len(origins) < len(data):
        one = [*range(1, drafts[turn % len(drafts)] + 1), 0][: len(data) - len(origins)]
        origins, sizes, turn = origins + one, [*sizes, len(one)], turn + 1
    stats = {"mode": "speculative", "bytes": len(data), "forwards": len(sizes), "bytes_per_forward": 1.5}
    stats |= {"bytes_per_s": 10.0, "accept_rate_by_position": [0.5, 0.0], "stopped_by": "max_bytes", "exact": 0}
    return Generation(data, stats, origins), sizes


class Seen(HTMLParser):
    """What a page holds: tags, attributes, the text of <pre id=text> and what is told of each byte in it."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.tags, self.attributes, self.told, self.text, self.prompt = set(), set(), [], "", ""
        self._open: list[str] = []
        self.feed(source)

    def handle_starttag(self, tag, attributes):
        values = dict(attributes)
        self.tags.add(tag)
        self.attributes |= values.keys()
        if tag != "meta":
            self._open.append("#" + values["id"] if "id" in values else values.get("class", tag))
        if "data-told" in values:
            self.told += values["data-told"].split("; ")

    def handle_startendtag(self, tag, attributes):
        self.tags.add(tag)
        self.attributes |= dict(attributes).keys()

    def handle_endtag(self, tag):
        self._open.pop()

    def handle_data(self, data):
        if "#text" in self._open and "note" not in self._open:
            if "prompt" in self._open:
                self.prompt += data
            else:
                self.text += data


FILLERS = "\u034f\u115f\u1160\u17b4\u17b5\u180b\u180c\u180d\u180f\u3164\uffa0"
FILLERS += "".join(map(chr, [*range(0xFE00, 0xFE10), *range(0xE0100, 0xE01F0)]))
"""Letters and marks without any look."""


def as_shown(data: bytes) -> str:
    """Decode; then everything that cannot be seen becomes escapes of its bytes."""
    shown = ""
    for symbol in data.decode("utf-8", "backslashreplace"):
        hidden = unicodedata.category(symbol) in ("Cc", "Cf", "Cn", "Co", "Zl", "Zp", "Zs") and symbol not in "\n\t "
        hidden = hidden or symbol in FILLERS
        shown += "".join(f"\\x{byte:02x}" for byte in symbol.encode()) if hidden else symbol
    return shown


@example(made=(b"", []), prompt="a\u3164b\u00a0c\u2003d\u034fe\ufe0fe\u0301".encode())
@example(made=(b"", []), prompt=b"\xe0\xc2\xa0")  # a lead byte, cut off by another whose bytes would have fitted it
@given(made=generations(), prompt=TEXTS)
def test_every_byte_is_shown_and_told_with_its_draft_and_pass(made, prompt):
    out, sizes = generation(*made)
    seen = Seen(page(prompt, out))
    assert seen.prompt + seen.text == as_shown(prompt + out.data)
    numbers = [number for number, size in enumerate(sizes, 1) for _ in range(size)]
    expected = [
        f"0x{value:02x}: position {position}, {f'draft {draft}' if draft else 'head 1'}, pass {number}"
        for position, (value, draft, number) in enumerate(zip(out.data, out.origins, numbers, strict=True))
    ]
    assert [line for line in seen.told if "prompt" not in line] == expected


@given(made=generations())
def test_passes_are_found_again_from_the_drafts(made):
    out, sizes = generation(*made)
    assert pass_sizes(out.origins) == sizes


def test_passes_of_a_real_run_are_its_forward_passes(trained_run):
    out = bytemtp.generate(bytemtp.load(trained_run), b"a rose", 60, mode="speculative")
    sizes = pass_sizes(out.origins)
    assert sum(sizes) == 60 and out.stats["stopped_by"] == "max_bytes"
    assert len(sizes) == out.stats["forwards"]


@pytest.mark.parametrize("name", ["_run", "$a$", "<b>&amp;", "two\nlines", "\udcff"])
def test_a_title_may_be_any_name_of_a_file(name):
    """Also one that is no UTF-8, which the page could not be written with."""
    seen = page(b"a", generation(b"abc")[0], title=f"{name}, ar")
    assert seen.encode() and html.unescape(re.findall("<h1>(.*)</h1>", seen)[0]) == f"{printable(name, keep='')}, ar"


def test_nothing_is_loaded_and_nothing_escapes_its_place():
    out, _ = generation(AWKWARD * 3)
    seen = Seen(page(AWKWARD, out, title="</title><script>", plain=out))
    assert seen.tags == {
        "html", "head", "meta", "title", "style", "body", "header", "h1", "h2", "section", "table", "thead", "tbody",
        "tr", "th", "td", "p", "strong", "ul", "li", "span", "pre", "div", "svg", "g", "path", "text",
    }  # fmt: skip
    assert not seen.attributes & {"src", "href", "onclick", "onload", "action"}
    assert "url(" not in page(b"", out) and "@import" not in page(b"", out)


def test_only_the_end_of_a_long_prompt_is_shown():
    out, _ = generation(b"new")
    source = page(b"x" * 1234 + b"y" * PROMPT_SHOWN, out)
    assert "1,234 bytes before this are not shown" in source
    assert Seen(source).prompt == "y" * PROMPT_SHOWN


def test_a_character_of_several_drafts_has_their_stripes():
    out = Generation("é".encode(), {}, [1, 0])
    assert "linear-gradient(90deg,var(--g1) 0% 50%,var(--g0) 50% 100%)" in page(b"", out)
    assert "stripe" not in page(b"", Generation(b"a", {}, [0])) and Seen(page(b"", out)).text == "é"


def test_charts_have_a_bar_for_each_draft_and_for_each_pass():
    """As high as the rate, and as the bytes that the pass brought; told while the pointer is on it."""
    rates, sizes = [0.5, 0.25, 0.0], [3, 1, 8]
    (acceptance,), (passes,) = acceptance_chart(rates).axes, pass_chart(sizes).axes
    assert [bar.get_height() for bar in acceptance.patches] == rates
    assert [(x, top) for (x, _), (_, top) in passes.collections[0].get_segments()] == [(1, 3), (2, 1), (3, 8)]
    source = page(b"", Generation(b"abcd", {"accept_rate_by_position": rates}, [1, 2, 0, 0]))
    assert "<title>draft 2: kept in 25.0% of the passes that drafted it</title>" in source
    assert "<title>pass 1: 3 bytes</title>" in source and "<title>pass 2: 1 byte</title>" in source


def test_a_page_is_the_same_every_time():
    out, _ = generation(b"abcdef")
    assert page(b"", out) == page(b"", out)


def test_an_empty_output_is_a_page_without_charts():
    source = page(b"only a prompt", Generation(b"", {"mode": "ar", "bytes": 0}, []))
    assert "<svg" not in source and Seen(source).prompt == "only a prompt"


def test_the_comparison_is_on_the_page():
    out, _ = generation(b"abc")
    other = Generation(b"abd", {**out.stats, "mode": "ar", "bytes_per_s": 4.0}, [0, 0, 0])
    assert "Speed-up 2.50x. Identical: <strong>no</strong>" in page(b"", out, plain=other)
    assert "Identical: <strong>yes</strong>" in page(b"", out, plain=out)
    assert "same distribution" in page(b"", out, plain=other, greedy=False)
    assert "Identical" not in page(b"", out)


def luminance(colour: str) -> float:
    """Relative luminance as WCAG 2.2 defines it."""
    channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    low, high = sorted(map(luminance, (one, other)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("theme", THEMES)
def test_everything_can_be_read(theme):
    """Text 7 to 1 (WCAG AAA), the grey prompt and marks 4.5 to 1, graphics 3 to 1."""
    colours, palette = THEMES[theme], PALETTES[theme]
    assert min(contrast(colours["ink"], ground) for ground in (*palette, colours["paper"])) >= 7
    assert contrast(colours["faint"], colours["paper"]) >= 4.5
    assert min(contrast(colours["mark"], ground) for ground in (*palette, colours["paper"])) >= 4.5
    assert contrast(colours["bar"], colours["paper"]) >= 3 and contrast(colours["line"], colours["paper"]) >= 3
    assert len(set(palette)) == len(palette) == GROUNDS


BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)


def browse(folder: Path, source: str, *options: str) -> str:
    """Standard output of a headless browser that loads the page."""
    (folder / "page.html").write_text(source, encoding="utf-8")
    program = [str(BROWSER), "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={folder / 'profile'}"]
    program += ["--window-size=900,900", *options, (folder / "page.html").as_uri()]
    return subprocess.run(program, capture_output=True, text=True, check=True, timeout=120).stdout


@pytest.mark.skipif(BROWSER is None, reason="needs a Chromium")
def test_a_browser_has_the_same_text(tmp_path):
    out, _ = generation(AWKWARD * 2)
    source = page(AWKWARD, out)
    seen, expected = Seen(browse(tmp_path, source, "--dump-dom")), Seen(source)
    assert (seen.prompt, seen.text, seen.told) == (expected.prompt, expected.text, expected.told)
    assert seen.text == as_shown(out.data) and "script" not in seen.tags


@pytest.mark.skipif(BROWSER is None, reason="needs a Chromium")
@pytest.mark.parametrize(("scheme", "theme"), [("1", "light"), ("0", "dark")])
def test_a_browser_paints_the_drafts_in_their_colours(tmp_path, scheme, theme):
    """In particular the page's own policy does not shut its style out."""
    out, _ = generation(b"the bytes of all the drafts " * 9, drafts=(8,))
    picture = tmp_path / "page.png"
    browse(tmp_path, page(b"", out), f"--blink-settings=preferredColorScheme={scheme}", f"--screenshot={picture}")
    pixels = (matplotlib.image.imread(picture)[..., :3] * 255).round().astype(np.uint8)
    counts = {colour: count(pixels, colour) for colour in (*PALETTES[theme], THEMES[theme]["paper"])}
    assert min(counts.values()) > 500, counts
    assert max(counts, key=lambda colour: counts[colour]) == THEMES[theme]["paper"]


def count(pixels: np.ndarray, colour: str) -> int:
    rgb = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
    return int((pixels == rgb).all(-1).sum())


def test_the_command_writes_the_page_and_streams(trained_run, tmp_path, monkeypatch):
    pieces: list[bytes] = []
    monkeypatch.setattr(command, "write", lambda piece, _: pieces.append(piece))
    arguments = ["--prompt", "a <rose>", "--max-bytes", "40", "--html", str(tmp_path / "page.html"), "--compare", "ar"]
    command.main([str(trained_run), "--device", "cpu", *arguments])
    expected = bytemtp.generate(bytemtp.load(trained_run), b"a <rose>", 40, mode="speculative")
    seen = Seen((tmp_path / "page.html").read_text(encoding="utf-8"))
    assert b"".join(pieces) == expected.data and len(pieces) > 1, "the bytes come as they are decoded"
    assert (seen.prompt, seen.text) == ("a <rose>", as_shown(expected.data))
    assert "Identical: <strong>yes</strong>" in (tmp_path / "page.html").read_text(encoding="utf-8")


def test_what_is_asked_for_is_written_though_nobody_reads_the_text(trained_run, tmp_path):
    program = [sys.executable, "-m", "bytemtp.generate", str(trained_run), "--prompt", "a", "--max-bytes", "300"]
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run([*program, "--stats", str(tmp_path / "stats")], stdout=write, stderr=subprocess.PIPE)
    os.close(write)
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "stats").read_text())["bytes"] == 300


@pytest.mark.parametrize("option", ["--html", "--stats"])
def test_a_file_that_cannot_be_written_is_one_line(trained_run, tmp_path, monkeypatch, option):
    monkeypatch.setattr(command, "write", lambda *_: None)
    with pytest.raises(UserError, match=r"^cannot write .*file: No such file or directory$"):
        command.main([str(trained_run), "--prompt", "a", "--max-bytes", "3", option, str(tmp_path / "no" / "file")])

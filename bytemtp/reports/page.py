"""Decoded bytes as a web page: one HTML file that loads nothing, with each byte coloured by the draft that it was.

The text stands there byte for byte: a valid character as itself, everything that would not be seen or would change what
is seen (control and format characters, broken UTF-8) as \\x escapes.  A character whose bytes come from several drafts
has a stripe for each.  What the pointer is on is told in a line at the foot of the window.  No script is needed.

Try:  python -m bytemtp.generate RUN --prompt "def add(" --max-bytes 500 --html page.html
"""

import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape
from itertools import groupby
from typing import Any

from bytemtp.decoding.divergence import Divergence
from bytemtp.decoding.generate import Generation

PROMPT_SHOWN = 2000
"""Bytes of a prompt that are shown, counted from its end."""

Palette = tuple[str, ...]

LIGHT: Palette = (
    "#eeeeee", "#cfe5ff", "#bdeee3", "#d2efb0", "#f3ec9f", "#ffd9a3", "#ffc9b8", "#f8c6e0", "#ddcdf7",
)  # fmt: skip
DARK: Palette = (
    "#2c2f34", "#173f70", "#0b4f49", "#2d5214", "#554c00", "#6a4300", "#722f1e", "#68264d", "#473078",
)  # fmt: skip
"""Ground of a byte by head 1 itself (first), and by draft 1, 2, ...; after the last they begin again at draft 1."""

THEMES: dict[str, dict[str, str]] = {
    "light": {
        "paper": "#ffffff",
        "ink": "#16181c",
        "faint": "#5c626b",
        "mark": "#4a5058",
        "line": "#8a919c",
        "bar": "#2f6db5",
    },
    "dark": {
        "paper": "#15171a",
        "ink": "#f1f3f5",
        "faint": "#a3abb6",
        "mark": "#bcc3cc",
        "line": "#6f7782",
        "bar": "#6aa9f0",
    },
}


@dataclass(frozen=True)
class Byte:
    """One byte and where it comes from."""

    value: int
    position: int
    """among the new bytes, from 0; negative in the prompt"""
    draft: int
    """0 if head 1 gave it; also in the prompt"""
    number: int
    """of the pass that it came in, from 1; 0 in the prompt"""

    @property
    def ground(self) -> int:
        """Index into the palette; -1 in the prompt."""
        return -1 if not self.number else (self.draft and 1 + (self.draft - 1) % (len(LIGHT) - 1))

    def __str__(self) -> str:
        origin = f"draft {self.draft}" if self.draft else "head 1"
        place = f"position {self.position}, {origin}, pass {self.number}" if self.number else "prompt"
        return f"0x{self.value:02x}: {place}"


def page(
    prompt: bytes,
    out: Generation,
    *,
    title: str = "bytemtp",
    plain: Generation | None = None,
    difference: Divergence | None = None,
    greedy: bool = True,
) -> str:
    """The page for one generation.

    plain: the same by plain decoding, to compare with.  difference: `divergence` of the two.  greedy: whether they are
    to be the same.
    """
    title = title.encode("utf-8", "replace").decode()  # a file name need not be text
    shown = prompt[-PROMPT_SHOWN:]
    sizes = pass_sizes(out.origins)
    parts = [
        f"<header><h1>{escape(title)}</h1></header>",
        _section("Numbers", table(out, plain, difference, greedy)),
        _section("Text", legend(out) + text(shown, out, hidden=len(prompt) - len(shown))),
        _section("Accepted drafts by position", acceptance_chart(out.stats.get("accept_rate_by_position", []))),
        _section("Bytes by pass", pass_chart(sizes)),
    ]
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">\n"
        '<meta name="viewport" content="width=device-width">\n<meta name="color-scheme" content="light dark">\n'
        f"<title>{escape(title)}</title>\n<style>\n{style()}</style>\n</head>\n<body>\n"
        + "\n".join(part for part in parts if part)
        + "\n</body>\n</html>\n"
    )


def pass_sizes(origins: Sequence[int]) -> list[int]:
    """Bytes of each pass.  A pass gives drafts 1, 2, ... and then a byte of head 1; the last one may be cut short."""
    ends = [i for i, origin in enumerate(origins, 1) if origin == 0 or i == len(origins)]
    return [end - begin for begin, end in zip([0, *ends], ends, strict=False)]


def text(prompt: bytes, out: Generation, *, hidden: int = 0) -> str:
    """The prompt and the new bytes.  A character belongs to the pass of its last byte.

    hidden: bytes of the prompt before these.
    """
    numbers = [number for number, size in enumerate(pass_sizes(out.origins), 1) for _ in range(size)]
    new = map(Byte, out.data, range(len(out.data)), out.origins, numbers)
    old = (Byte(value, position - len(prompt), 0, 0) for position, value in enumerate(prompt))
    units = list(characters([*old, *new]))
    pieces = [f'<span class="note">{hidden:,} bytes before this are not shown</span>\n'] if hidden else []
    for number, group in groupby(units, key=lambda unit: unit[-1].number):
        inside = "".join(map(character, group))
        pieces.append(f'<span class="{"pass" if number else "prompt"}">{inside}</span>')
    return f'<pre id="text">{"".join(pieces)}</pre>'


def characters(octets: Sequence[Byte]) -> Iterator[list[Byte]]:
    """Cut into valid characters, and single bytes where there is none, or none to be shown."""
    start = 0
    while start < len(octets):
        size = _valid_size(octets, start)
        unit = list(octets[start : start + size])
        start += size
        if size == 1 or _visible(_decoded(unit)):
            yield unit
        else:
            yield from ([byte] for byte in unit)


def _valid_size(octets: Sequence[Byte], start: int) -> int:
    """Bytes of the valid character that starts there; 1 if there is none."""
    return next((size for size in range(1, 5) if _decoded(octets[start : start + size]) is not None), 1)


def _decoded(unit: Sequence[Byte]) -> str | None:
    try:
        return bytes(byte.value for byte in unit).decode()
    except UnicodeDecodeError:
        return None


def _visible(symbol: str | None) -> bool:
    """Newline and tab are; what has no look of its own, or changes that of its neighbours, is not."""
    if symbol is None:
        return False
    return symbol in "\n\t" or (
        unicodedata.category(symbol)[0] != "C" and unicodedata.category(symbol) not in ("Zl", "Zp")
    )


def character(unit: Sequence[Byte]) -> str:
    """One character, or one byte as an escape."""
    symbol = _decoded(unit)
    shown = symbol if symbol is not None and _visible(symbol) else "".join(f"\\x{byte.value:02x}" for byte in unit)
    kind = {"\n": " newline", "\t": " tab"}.get(shown, "" if shown == symbol else " escape")
    told = escape("; ".join(map(str, unit)))
    if not any(byte.number for byte in unit):
        return f'<span class="{kind.strip()}">{escape(shown)}</span>' if kind else escape(shown)
    grounds = [byte.ground for byte in unit]
    if len(set(grounds)) == 1:
        return f'<span class="g{grounds[0]}{kind}" data-told="{told}">{escape(shown)}</span>'
    return f'<span class="mixed" style="background:{stripes(grounds)}" data-told="{told}">{escape(shown)}</span>'


def stripes(grounds: Sequence[int]) -> str:
    """Equal stripes from left to right, as a CSS gradient."""
    colours = ["var(--paper)" if ground < 0 else f"var(--g{ground})" for ground in grounds]
    width = 100 / len(colours)
    stops = [f"{colour} {i * width:.0f}% {(i + 1) * width:.0f}%" for i, colour in enumerate(colours)]
    return f"linear-gradient(90deg,{','.join(stops)})"


def legend(out: Generation) -> str:
    """One swatch for each origin that occurs."""
    counts = {origin: out.origins.count(origin) for origin in sorted(set(out.origins))}
    items = [
        f'<li><span class="g{Byte(0, 0, origin, 1).ground}">{f"draft {origin}" if origin else "head 1 itself"}</span> '
        f"{count:,}</li>"
        for origin, count in counts.items()
    ]
    return f'<ul class="legend"><li><span class="prompt">prompt</span></li>{"".join(items)}</ul>'


COLUMNS: dict[str, str] = {
    "bytes": "{:,}",
    "forwards": "{:,}",
    "bytes_per_forward": "{:.2f}",
    "bytes_per_s": "{:,.1f}",
    "exact": "{:,}",
    "stopped_by": "{}",
}
"""Statistics in the table, and how each is written."""
HEADINGS = {"forwards": "passes", "bytes_per_forward": "bytes a pass", "bytes_per_s": "bytes/s", "exact": "near ties"}


def table(
    out: Generation, plain: Generation | None = None, difference: Divergence | None = None, greedy: bool = True
) -> str:
    """Statistics, a row a way of decoding, and the verdict of the comparison."""
    names = [name for name in COLUMNS if name in out.stats]
    heads = "".join(f"<th>{escape(HEADINGS.get(name, name.replace('_', ' ')))}</th>" for name in ("mode", *names))
    rows = [_row(generation.stats, names) for generation in (plain, out) if generation is not None]
    shown = f"<table><thead><tr>{heads}</tr></thead><tbody>{''.join(rows)}</tbody></table>"
    return shown + (verdict(plain, out, difference, greedy) if plain else "")


def _row(stats: dict[str, Any], names: Sequence[str]) -> str:
    cells = "".join(f"<td>{escape(COLUMNS[name].format(stats[name]))}</td>" for name in names)
    return f"<tr><th>{escape(str(stats.get('mode', '')))}</th>{cells}</tr>"


def verdict(plain: Generation, fast: Generation, difference: Divergence | None, greedy: bool) -> str:
    """How much faster, and whether the same bytes came out, which only greedy decoding promises."""
    before = plain.stats["bytes_per_s"]
    speed = f"Speed-up {fast.stats['bytes_per_s'] / before:.2f}x. " if before else ""
    detail = f", {difference}." if difference else ""
    same = f"Identical: <strong>{'yes' if plain.data == fast.data else 'no'}</strong>{detail}"
    return f'<p id="verdict">{speed}{same if greedy else "Both are draws from the same distribution."}</p>'


def acceptance_chart(rates: Sequence[float]) -> str:
    """Share of the passes with a draft at a position in which it was kept.  Empty without drafts."""
    if not rates:
        return ""
    width, height, step = 36, 120, 52
    bars = []
    for i, rate in enumerate(rates):
        x, tall = i * step + 8, rate * height
        bars.append(
            f"<g><title>draft {i + 1}: kept in {rate:.1%} of the passes that drafted it</title>"
            f'<rect class="g{Byte(0, 0, i + 1, 1).ground}" x="{x}" y="{18 + height - tall:.1f}" width="{width}"'
            f' height="{tall:.1f}"/><text x="{x + width / 2}" y="{12 + height - tall:.1f}">{rate:.0%}</text>'
            f'<text class="faint" x="{x + width / 2}" y="{height + 34}">{i + 1}</text></g>'
        )
    return _svg(len(rates) * step + 8, height + 40, 18 + height, "".join(bars), "Accepted drafts by position")


def pass_chart(sizes: Sequence[int]) -> str:
    """One bar a pass, as high as it brought bytes.  Empty without a pass."""
    if not sizes:
        return ""
    step, unit, top = 7, min(14.0, 140 / max(sizes)), 4
    base = top + round(max(sizes) * unit)
    bars = "".join(
        f'<rect class="bar" x="{8 + i * step}" y="{base - size * unit:.1f}" width="{step - 2}"'
        f' height="{size * unit:.1f}"><title>pass {i + 1}: {size} byte{"s" * (size > 1)}</title></rect>'
        for i, size in enumerate(sizes)
    )
    mean = sum(sizes) / len(sizes)
    note = f"{len(sizes):,} passes that brought bytes, from left to right: {mean:.2f} each, {max(sizes)} at most."
    return f'<p class="note">{note}</p>' + _svg(len(sizes) * step + 16, base + 4, base, bars, "Bytes by pass")


def _svg(width: int, height: int, base: int, inside: str, label: str) -> str:
    """A chart that scrolls sideways if it is wider than the window."""
    line = f'<line x1="0" x2="{width}" y1="{base}" y2="{base}"/>'
    return (
        f'<div class="scroll" tabindex="0"><svg role="img" aria-label="{label}" width="{width}" height="{height}"'
        f' viewBox="0 0 {width} {height}">{inside}{line}</svg></div>'
    )


def _section(title: str, inside: str) -> str:
    return f"<section><h2>{title}</h2>{inside}</section>" if inside else ""


def style() -> str:
    """The style sheet; colours are variables, so that dark mode changes nothing else."""
    light = _variables(THEMES["light"], LIGHT)
    dark = _variables(THEMES["dark"], DARK)
    grounds = "".join(f".g{i} {{ background: var(--g{i}); fill: var(--g{i}); }}\n" for i in range(len(LIGHT)))
    schemes = f":root {{ {light} }}\n@media (prefers-color-scheme: dark) {{ :root {{ {dark} }} }}\n"
    return schemes + grounds + RULES


def _variables(theme: dict[str, str], palette: Palette) -> str:
    named = {**theme, **{f"g{i}": colour for i, colour in enumerate(palette)}}
    return " ".join(f"--{name}: {colour};" for name, colour in named.items())


RULES = """\
body { margin: 0 auto; padding: 1rem 1.5rem 4rem; max-width: 68rem; background: var(--paper); color: var(--ink);
  font: 15px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.25rem; margin: 0.5rem 0; overflow-wrap: anywhere; }
h2 { font-size: 1rem; margin: 1.75rem 0 0.5rem; }
pre { margin: 0; padding: 0.75rem 1rem; border: 1px solid var(--line); border-radius: 6px; word-break: break-all;
  white-space: break-spaces; font: 14px/1.7 ui-monospace, "DejaVu Sans Mono", Menlo, Consolas, monospace; }
pre span[data-told] { padding: 0.15em 0; }
.prompt, .note, .faint { color: var(--faint); fill: var(--faint); }
.pass:hover { outline: 1px solid var(--line); }
.pass > span:hover { outline: 2px solid var(--ink); }
.pass > span:hover::after { content: attr(data-told); position: fixed; left: 0; right: 0; bottom: 0; z-index: 1;
  padding: 0.4rem 1.5rem; background: var(--ink); color: var(--paper); white-space: pre-wrap; }
.escape { display: inline-block; line-height: 1.4;
  font-size: 0.8em; font-style: italic; border: 1px solid var(--line); border-radius: 3px; }
.newline::before { content: "\\21b5"; color: var(--mark); }
.tab::before { content: "\\21e5"; color: var(--mark); }
.legend { display: flex; flex-wrap: wrap; gap: 0.25rem 1rem; margin: 0 0 0.6rem; padding: 0; list-style: none;
  color: var(--faint); }
.legend span:not(.prompt) { padding: 0.1rem 0.45rem; border-radius: 4px; color: var(--ink); }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: 0.2rem 1.1rem 0.2rem 0; text-align: right; border-bottom: 1px solid var(--line); }
th:first-child { text-align: left; }
.scroll { overflow-x: auto; }
svg { display: block; }
svg text { fill: var(--ink); font-size: 12px; text-anchor: middle; }
svg text.faint { fill: var(--faint); }
svg rect { stroke: var(--line); }
svg rect.bar { fill: var(--bar); stroke: none; }
svg rect:hover, g:hover rect { stroke: var(--ink); }
svg line { stroke: var(--line); }
"""

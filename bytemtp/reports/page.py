"""Decoded bytes as a web page: one HTML file that loads nothing, with each byte coloured by the draft that it was.

The text stands there byte for byte: a valid character as itself, everything that would not be seen or would change what
is seen (control and format characters, broken UTF-8) as \\x escapes.  A character whose bytes come from several drafts
has a stripe for each.  What the pointer is on is told in a line at the foot of the window.  No script is needed.

Try:  python -m bytemtp.generate RUN --prompt "def add(" --max-bytes 500 --html page.html
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bytemtp.decoding.divergence import Divergence
from bytemtp.decoding.generate import Generation
from bytemtp.reports.figures import TOLD, inline_svg
from bytemtp.reports.html import GROUNDS, THEMES, render

PROMPT_SHOWN = 2000
"""Bytes of a prompt that are shown, counted from its end."""
LIGHT = THEMES["light"]
"""Colours that figures are drawn in; the page has those of dark mode in their place."""
POINT = 72 / 96
"""matplotlib's points in a CSS pixel."""


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
    sizes = pass_sizes(out.origins)
    rates = out.stats.get("accept_rate_by_position", [])
    return render(
        "generation.html",
        title=title,
        out=out,
        plain=plain,
        difference=difference,
        greedy=greedy,
        counts=Counter(out.origins),
        ground=ground,
        hidden=max(0, len(prompt) - PROMPT_SHOWN),
        characters=characters(octets_of(prompt[-PROMPT_SHOWN:], out)),
        sizes=sizes,
        passes=sizes and inline_svg(pass_chart(sizes), "Bytes by pass"),
        acceptance=rates and inline_svg(acceptance_chart(rates), "Accepted drafts by position"),
    )


def ground(draft: int) -> int:
    """Number of the colour of a draft, or of head 1 itself (0); after the last they begin again at draft 1."""
    return draft and 1 + (draft - 1) % (GROUNDS - 1)


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

    def __str__(self) -> str:
        origin = f"draft {self.draft}" if self.draft else "head 1"
        place = f"position {self.position}, {origin}, pass {self.number}" if self.number else "prompt"
        return f"0x{self.value:02x}: {place}"


@dataclass(frozen=True)
class Character:
    """One character, or one byte as an escape.  It belongs to the pass of its last byte."""

    shown: str
    octets: Sequence[Byte]
    escaped: bool = False

    @property
    def number(self) -> int:
        return self.octets[-1].number

    @property
    def told(self) -> str:
        """What is told of it; nothing in the prompt."""
        return "; ".join(map(str, self.octets)) if self.number else ""

    @property
    def colours(self) -> list[str]:
        """CSS variable of each byte's ground."""
        return [f"g{ground(byte.draft)}" if byte.number else "paper" for byte in self.octets]

    @property
    def classes(self) -> str:
        """CSS classes."""
        kind = {"\n": "newline", "\t": "tab"}.get(self.shown, "escape" if self.escaped else "")
        colour = self.colours[0] if self.number and not self.stripes else ""
        return f"{colour} {kind}".strip()

    @property
    def stripes(self) -> str:
        """Equal stripes from left to right, as a CSS gradient, if the bytes differ in ground."""
        if len(set(self.colours)) == 1:
            return ""
        width = 100 / len(self.colours)
        stops = [f"var(--{name}) {i * width:.0f}% {(i + 1) * width:.0f}%" for i, name in enumerate(self.colours)]
        return f"linear-gradient(90deg,{','.join(stops)})"


def pass_sizes(origins: Sequence[int]) -> list[int]:
    """Bytes of each pass.  A pass gives drafts 1, 2, ... and then a byte of head 1; the last one may be cut short."""
    ends = [i for i, origin in enumerate(origins, 1) if origin == 0 or i == len(origins)]
    return [end - begin for begin, end in zip([0, *ends], ends, strict=False)]


def octets_of(prompt: bytes, out: Generation) -> list[Byte]:
    """The prompt's bytes and the new ones."""
    numbers = [number for number, size in enumerate(pass_sizes(out.origins), 1) for _ in range(size)]
    new = map(Byte, out.data, range(len(out.data)), out.origins, numbers)
    return [*(Byte(value, position - len(prompt), 0, 0) for position, value in enumerate(prompt)), *new]


IGNORABLE = {0x34F, 0x115F, 0x1160, 0x17B4, 0x17B5, *range(0x180B, 0x1810), 0x3164, 0xFFA0}
IGNORABLE |= {*range(0xFE00, 0xFE10), *range(0xE0100, 0xE01F0)}
"""Characters that Python calls printable and nobody sees: Unicode's Default_Ignorable_Code_Point."""


def characters(octets: Sequence[Byte]) -> Iterator[Character]:
    """Cut into valid characters, and single bytes where there is none, or none to be shown."""
    start = 0
    for symbol in bytes(byte.value for byte in octets).decode("utf-8", "surrogateescape"):
        unit = octets[start : start + len(symbol.encode("utf-8", "surrogateescape"))]
        start += len(unit)
        if _visible(symbol):
            yield Character(symbol, unit)
        else:
            yield from (Character(f"\\x{byte.value:02x}", [byte], escaped=True) for byte in unit)


def _visible(symbol: str) -> bool:
    """Newline and tab are; what has no look of its own, or changes that of its neighbours, is not."""
    return symbol in "\n\t" or (symbol.isprintable() and ord(symbol) not in IGNORABLE)


def acceptance_chart(rates: Sequence[float]) -> Figure:
    """Share of the passes with a draft at a position in which it was kept."""
    count = len(rates)
    figure, axes = _chart(52 * count + 8, 160, count)
    colours = [LIGHT[f"g{ground(i)}"] for i in range(1, count + 1)]
    bars = axes.bar(range(1, count + 1), rates, width=0.7, color=colours, edgecolor=LIGHT["line"], clip_on=False)
    for i, (bar, rate) in enumerate(zip(bars, rates, strict=True), 1):
        bar.set_url(f"{TOLD}draft {i}: kept in {rate:.1%} of the passes that drafted it")
    axes.bar_label(bars, fmt="{:.0%}", fontsize=9, color=LIGHT["ink"], padding=2)
    axes.set(ylim=(0, 1), xticks=range(1, count + 1))
    axes.tick_params(length=0, labelsize=9, labelcolor=LIGHT["faint"])
    return figure


def pass_chart(sizes: Sequence[int]) -> Figure:
    """One bar a pass, as high as it brought bytes.  Bars are thick lines, which are drawn many times faster."""
    figure, axes = _chart(7 * len(sizes) + 16, min(14 * max(sizes), 140) + 16, len(sizes))
    told = [f"{TOLD}pass {i}: {size} byte{'s' * (size > 1)}" for i, size in enumerate(sizes, 1)]
    axes.vlines(range(1, len(sizes) + 1), 0, sizes, LIGHT["bar"], linewidth=5 * POINT, clip_on=False, urls=told)
    axes.set_ylim(0, max(sizes))
    return figure


def _chart(width: int, height: int, count: int) -> tuple[Figure, Axes]:
    """Room for so many bars on a line.  width, height: CSS pixels."""
    figure = Figure(figsize=(width / 96, height / 96), layout="constrained")
    axes = figure.subplots()
    axes.spines[["top", "left", "right"]].set_visible(False)
    axes.spines["bottom"].set_color(LIGHT["line"])
    axes.set(xlim=(0.5, count + 0.5), xticks=[], yticks=[])
    return figure, axes

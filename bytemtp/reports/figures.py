"""What all figures have in common: colours, axes, names as labels, the files they go to, and SVG inside a page."""

import io
import re
from pathlib import Path

import matplotlib
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bytemtp.common.errors import UserError
from bytemtp.common.files import check_output, writing
from bytemtp.reports.html import THEMES, printable

FORMATS = (".png", ".svg", ".pdf")
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
"""Okabe & Ito's, which colour-blind readers can tell apart."""
VARIABLES = {colour: f"var(--{name})" for name, colour in THEMES["light"].items()} | {"#000000": "var(--ink)"}
"""What stands for a colour in a page, so that it follows dark mode."""
NOT_IN_PAGES = r' (xmlns|xmlns:xlink|version)="[^"]*"|<defs>\s*<style.*?</defs>|font-family: [^;"]*(; )?'
"""Parts of matplotlib's SVG that a page has its own for, or that would be for all of the page."""
TOLD = "told: "
"""Begins the URL of an artist which is no URL, but text that a page shows while the pointer is on the artist."""


def check_picture(path: Path) -> None:
    """UserError if no picture could be written there."""
    if path.suffix not in FORMATS:
        raise UserError(f"cannot write {path}: its ending must be one of {', '.join(FORMATS)}")
    check_output(path)


def save_picture(figure: Figure, path: Path) -> None:
    """Write .png, .svg or .pdf, as the ending says.  UserError if it cannot be written."""
    with writing(path):
        figure.savefig(path)


def literal(name: str) -> str:
    """A label that shows `name` as it is.

    matplotlib would read text between two $ as mathematics, and leave a label that begins with _ out of the legend.
    """
    text = printable(name, keep="").replace("$", r"\$")
    return f" {text}" if text.startswith("_") else text


def describe(axes: Axes, x: str, y: str, title: str = "") -> None:
    """Labels, a faint grid, and no frame."""
    axes.set_title(title, fontsize=10)
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.grid(color=THEMES["light"]["line"], alpha=0.3, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def inline_svg(figure: Figure, name: str) -> Markup:
    """The figure as an element of a page, the same every time; `name` is for those who cannot see it.

    Text stays text.  No group has an id, since ids of two figures in one page would be the same.
    """
    file = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "bytemtp"}):
        figure.savefig(file, format="svg", metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    svg = file.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(NOT_IN_PAGES, "", svg, flags=re.DOTALL)
    svg = re.sub(f'<a xlink:href="{TOLD}([^"]*)"[^>]*>', r"<g><title>\1</title>", svg).replace("</a>", "</g>")
    svg = re.sub('<g id="[^"]*"', "<g", svg)
    svg = re.sub("((?:fill|stroke): )(#[0-9a-f]{6})", lambda found: found[1] + VARIABLES.get(found[2], found[2]), svg)
    return Markup(svg.replace("<svg", Markup('<svg role="img" aria-label="{}"').format(name), 1))

"""Pages from the templates in `templates/`: one HTML file that loads nothing and runs no script.

Every value is escaped, unless it is Markup; a value that a template needs and is not given is an error.
"""

from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

GROUNDS = 9
"""Colours for the ground of a byte: g0 for head 1 itself, then g1, g2, ... for draft 1, 2, ..."""

THEMES: dict[str, dict[str, str]] = {
    "light": {
        "paper": "#ffffff", "ink": "#16181c", "faint": "#5c626b", "mark": "#4a5058",
        "line": "#8a919c", "bar": "#2f6db5",
        "g0": "#eeeeee", "g1": "#cfe5ff", "g2": "#bdeee3", "g3": "#d2efb0", "g4": "#f3ec9f",
        "g5": "#ffd9a3", "g6": "#ffc9b8", "g7": "#f8c6e0", "g8": "#ddcdf7",
    },
    "dark": {
        "paper": "#15171a", "ink": "#f1f3f5", "faint": "#a3abb6", "mark": "#bcc3cc",
        "line": "#6f7782", "bar": "#6aa9f0",
        "g0": "#2c2f34", "g1": "#173f70", "g2": "#0b4f49", "g3": "#2d5214", "g4": "#554c00",
        "g5": "#6a4300", "g6": "#722f1e", "g7": "#68264d", "g8": "#473078",
    },
}  # fmt: skip
"""CSS variables of the pages, with and without dark mode."""


def printable(text: str, keep: str = "\n\t") -> str:
    """What cannot be seen, and bytes of a file name that are no text, as escapes; `keep` as it is."""
    return "".join(c if c.isprintable() or c in keep else _escaped(c) for c in text)


def _escaped(character: str) -> str:
    """That of the byte which Python wrote as a lone surrogate (PEP 383), or else of the code point."""
    byte = ord(character) - 0xDC00 if "\udc80" <= character <= "\udcff" else ord(character)
    return f"\\x{byte:02x}" if byte < 256 else character.encode("unicode_escape").decode()


def render(template: str, **values: Any) -> str:
    """The page that a template makes of these values."""
    return _environment.get_template(template).render(values)


_environment = Environment(
    loader=PackageLoader("bytemtp.reports"),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
_environment.globals |= {"THEMES": THEMES, "GROUNDS": GROUNDS}
_environment.filters["printable"] = printable

"""Decoded bytes for eyes, on a terminal: in whole characters as they come, or coloured by the draft that each was."""

from collections.abc import Iterable, Iterator

from bytemtp.decoding.generate import Generation
from bytemtp.decoding.utf8 import START, state_after

PALETTE = (231, 120, 84, 81, 75, 141, 177, 212)
"""Terminal colours (of 256) of a byte from head 1, and of the first, second, ... draft; then the drafts' repeat."""


def whole_characters(chunks: Iterable[bytes]) -> Iterator[bytes]:
    """The same bytes, cut anew so that no piece but the last ends inside a character.

    At most three bytes are held back, and only while they may still become a character: broken ones come out, too.
    """
    held = b""
    for chunk in chunks:
        held += chunk
        end = len(held) - open_end(held)
        if end:
            yield held[:end]
            held = held[end:]
    if held:
        yield held


def open_end(data: bytes) -> int:
    """Bytes at the end of `data` that begin a character and do not finish it."""
    return next((size for size in (1, 2, 3) if size <= len(data) and state_after(data[-size:]) != START), 0)


def coloured(out: Generation) -> bytes:
    """The bytes with a colour code wherever the origin changes.

    A character of several bytes has the colour of its last one, since a code inside it would break it.
    """
    pieces: list[str] = []
    end, colour = 0, -1
    for character in out.data.decode("utf-8", "surrogateescape"):  # a broken byte is a character for now
        end += len(character.encode("utf-8", "surrogateescape"))
        origin = out.origins[end - 1]
        if origin != colour:
            pieces.append(f"\x1b[38;5;{PALETTE[origin and 1 + (origin - 1) % (len(PALETTE) - 1)]}m")
            colour = origin
        pieces.append(character)
    shown = ("".join(pieces) + "\x1b[0m\n").encode("utf-8", "surrogateescape")
    return shown.decode("utf-8", "replace").encode()

"""Decoded bytes for eyes: on a terminal, coloured by the draft that each one was."""

from bytemtp.decode import Generation

PALETTE = (231, 120, 84, 81, 75, 141, 177, 212)
"""Terminal colours (of 256) for a byte from head 1 itself, and for the first, second, ... draft; then they repeat."""


def coloured(out: Generation) -> bytes:
    """The bytes with a colour code wherever the origin changes.

    A character of several bytes has the colour of its last one, since a code inside it would break it.
    """
    text = out.data.decode("utf-8", "replace")
    pieces: list[str] = []
    position, colour = 0, -1
    for character in text:
        size = _size(out.data, position, character)
        position += size
        origin = out.origins[position - 1]
        if origin != colour:
            pieces.append(f"\x1b[38;5;{PALETTE[origin % len(PALETTE)]}m")
            colour = origin
        pieces.append(character)
    return ("".join(pieces) + "\x1b[0m\n").encode()


def _size(data: bytes, position: int, character: str) -> int:
    """Bytes behind one decoded character; a replacement character may stand for a broken sequence of any length."""
    encoded = character.encode()
    if data.startswith(encoded, position):
        return len(encoded)
    size = 1
    while position + size < len(data) and data[position : position + size + 1].decode("utf-8", "replace") == "\ufffd":
        size += 1
    return size

"""Lines of JSON too long to be held, read as if they were not: without what the other fields hold.

Try:  python -c "from bytemtp.data.long_lines import LongLine; line = LongLine('text', 99);
      line.add(b'{\\"a\\": [1, 2], \\"text\\": \\"b\\"}'); print(line.line())"
"""

import json
import re

STRING = re.compile(rb'(?:[^"\\]++|\\.)*+', re.DOTALL)
"""The rest of a string, without its closing quote."""
OUTSIDE = re.compile(rb'[^"{}\[\],:]*+')
"""What may stand between the signs of an object."""
DEEP = re.compile(rb'[^"{}\[\]]*+')
"""The same where commas and colons do not matter."""


class LongLine:
    """A line that is given piece by piece.  It is kept with a 0 for the value of each field but one.

    Whether those values are JSON is not looked at; all else is kept, for the parser to judge.
    """

    def __init__(self, field: str, most: int) -> None:
        """most: bytes that may be kept."""
        self._field = field
        self._most = most
        self._kept = bytearray()
        self._key = bytearray()
        self._rest = b""
        self._depth = 0
        self._in_string = self._in_key = self._dropping = False
        self._is_too_long = False

    def add(self, data: bytes) -> None:
        """The bytes that come next."""
        data, self._rest = self._rest + data, b""
        place = 0
        while place < len(data) and not self._is_too_long:
            place = self._string(data, place) if self._in_string else self._outside(data, place)
        if len(self._kept) > self._most:
            self._is_too_long = True
            self._kept.clear()
            self._key.clear()

    def line(self) -> bytes | None:
        """The line so far, shortened; None if it is too long even so."""
        self._take(self._rest)
        return None if self._is_too_long else bytes(self._kept)

    def _string(self, data: bytes, place: int) -> int:
        """Take the string that is open, as far as it goes; returns where it ends."""
        end = _end(STRING, data, place)
        if end == len(data) - 1 and data.endswith(b"\\"):  # what is escaped comes with the next piece
            self._rest = b"\\"
            self._take(data[place:end])
            return len(data)
        self._in_string = data[end : end + 1] != b'"'
        self._take(data[place : end + 1])
        return end + 1

    def _outside(self, data: bytes, place: int) -> int:
        """Take all up to the next sign, and that sign; returns where it ends."""
        end = _end(DEEP if self._depth > 1 else OUTSIDE, data, place)
        self._take(data[place:end])
        sign = data[end : end + 1]
        opens, closes = sign in (b"{", b"["), sign in (b"}", b"]")
        self._depth += opens - closes
        begins_field = self._depth == 1 and (opens or sign == b",")
        if begins_field or (closes and self._depth == 0):
            self._dropping = self._in_key = False
        begins_value = self._depth == 1 and self._in_key and sign == b":"
        self._in_key = self._in_key and not begins_value
        self._take(sign)
        if begins_field:
            self._key.clear()
            self._in_key = True
        if begins_value and not self._is_field():
            self._kept += b"0"
            self._dropping = True
        self._in_string = sign == b'"'
        return end + 1

    def _is_field(self) -> bool:
        try:
            return bool(json.loads(self._key) == self._field)
        except ValueError:
            return False

    def _take(self, data: bytes) -> None:
        if not self._dropping:
            self._kept += data
        if self._in_key:
            self._key += data


def _end(pattern: re.Pattern[bytes], data: bytes, place: int) -> int:
    """Where the longest match that begins at a place ends; these patterns match everywhere."""
    match = pattern.match(data, place)
    return place if match is None else match.end()

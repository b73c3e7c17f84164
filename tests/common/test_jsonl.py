"""Files of JSON lines: what editors and kills leave in them, going on with a part, numbers of any length."""

import json
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bytemtp.common.jsonl import JsonLinesFile, line_of, read_lines


@given(
    st.lists(st.sampled_from([b'{"a": 1}', b'{"b": "\\r"}', b"", b" "])),
    st.sampled_from([b"\n", b"\r\n"]),
    st.sampled_from([b"", b"\xef\xbb\xbf"]),
    st.sampled_from([b"", b'{"a"']),
)
def test_blank_lines_line_ends_byte_order_marks_and_cut_lines_do_not_matter(
    tmp_path_factory: pytest.TempPathFactory, lines: list[bytes], end: bytes, mark: bytes, rest: bytes
) -> None:
    path = tmp_path_factory.mktemp("lines") / "a.jsonl"
    path.write_bytes(b"".join(mark + line + end for line in lines) + rest)
    expected = [json.loads(line) for line in lines if line.strip()]
    assert read_lines(path) == expected
    for kept in range(len(expected) + 1):
        path.write_bytes(b"".join(mark + line + end for line in lines) + rest)
        file = JsonLinesFile(path)
        file.keep(kept)
        assert file.records == expected and path.read_bytes().endswith(rest)  # nothing is lost before `append`
        file.append([{"new": 1}])
        file.append([{"new": 2}])
        assert read_lines(path) == [*expected[:kept], {"new": 1}, {"new": 2}]


def test_whole_numbers_of_any_length_travel_and_the_limit_of_others_stays(tmp_path: Path) -> None:
    limit = sys.get_int_max_str_digits()
    (tmp_path / "a.jsonl").write_bytes(line_of({"n": 10**5000}))
    assert read_lines(tmp_path / "a.jsonl") == [{"n": 10**5000}] and sys.get_int_max_str_digits() == limit

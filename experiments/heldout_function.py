"""Print the beginning of a function that training has not seen: the text from its file's start to its docstring's end.

Try:  python experiments/heldout_function.py data/python/heldout.tar.zst --longest 400
"""

import argparse
import ast
import io
import sys
import tarfile
from pathlib import Path

import zstandard


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("corpus", type=Path, help="a .tar.zst of Python files")
    parser.add_argument("--longest", type=int, default=400, help="bytes of the prompt at most; it is cut at its start")
    arguments = parser.parse_args()
    for source in sources(arguments.corpus):
        if begin := beginning(source):
            sys.stdout.buffer.write(begin[-arguments.longest :])
            return
    raise SystemExit(f"{arguments.corpus} has no function with a docstring")


def sources(corpus: Path) -> list[bytes]:
    """The corpus's files, in its order."""
    raw = zstandard.ZstdDecompressor().stream_reader(corpus.open("rb")).read()
    with tarfile.open(fileobj=io.BytesIO(raw)) as tar:
        return [file.read() for member in tar if (file := tar.extractfile(member)) is not None]


def beginning(source: bytes) -> bytes | None:
    """A file up to the end of the docstring of its first function that has one and a body of three statements."""
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError):
        return None
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
    for function in sorted(functions, key=lambda node: node.lineno):
        if ast.get_docstring(function) and len(function.body) > 3:
            lines = source.splitlines(keepends=True)
            return b"".join(lines[: function.body[0].end_lineno])
    return None


if __name__ == "__main__":
    main()

"""A real corpus without a download: the Python sources that this interpreter came with.

    python -m corpora.python_library --out DIR [--add FOLDER ...]

A corpus of sources.py, whose manifest also names the version of Python.
"""

import argparse
import platform
import sysconfig
from collections.abc import Sequence
from pathlib import Path

from bytemtp.common.cli import run_main
from corpora.sources import build, summary


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m corpora.python_library",
        description="Write a corpus of the Python sources on this machine.",
        epilog="example: python -m corpora.python_library --out corpus && python -m bytemtp.train corpus/train.tar.zst "
        "--out run",
    )
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder to write to")
    parser.add_argument(
        "--add", type=Path, action="append", default=[], metavar="FOLDER", help="more sources, such as site-packages"
    )
    options = parser.parse_args(arguments)
    folders = [Path(sysconfig.get_paths()["stdlib"]), *options.add]
    version = platform.python_version()
    print(f"Python {version}, {summary(build(options.out, folders, about={'python': version}))}")


if __name__ == "__main__":
    run_main(main)

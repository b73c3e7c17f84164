"""Command: a file of `bytemtp.compress` back to what it was, with the run that compressed it.

Try:  python -m bytemtp.decompress RUN FILE.bmtp --out FILE
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
import tyro

from bytemtp.common.cli import run, run_main
from bytemtp.common.errors import UserError
from bytemtp.common.files import check_output, read_input, write_output
from bytemtp.common.runtime import byte_progress, log, pick_device
from bytemtp.compress.__main__ import summary
from bytemtp.decoding.coding.codec import decode
from bytemtp.decoding.coding.container import unpack
from bytemtp.model.checkpoint import load_model


@dataclass(frozen=True)
class Command:
    """Decompress a file of python -m bytemtp.compress with the run that compressed it, bit for bit.

    An example:

        python -m bytemtp.decompress runs/demo notes.bmtp --out notes.txt

    Another run, a damaged file and a machine that computes other numbers are reported, and nothing is written.
    """

    run: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="RUN")]
    """the run folder, or step folder, that compressed the file"""
    file: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="FILE")]
    """what `bytemtp.compress` wrote"""
    out: Path
    """file to write; an older one is replaced once the new one is complete"""

    def main(self) -> None:
        check_output(self.out)
        compressed = read_input(self.file)
        header, _ = unpack(compressed, str(self.file))
        if header.arithmetic == "cuda" and not torch.cuda.is_available():
            raise UserError(
                f"{self.file} was compressed on a CUDA device, and there is none here; decompress it where there is one"
            )
        model = load_model(self.run, pick_device("cuda" if header.arithmetic == "cuda" else "cpu").value)
        begun = time.perf_counter()
        with byte_progress("decompressed", header.length) as bar:
            coded = decode(model, compressed, bar.update, name=str(self.file))
        seconds = time.perf_counter() - begun
        write_output(self.out, coded.data)
        log(f"written: {self.out} ({summary(header.length, len(compressed), seconds, coded.passes)})")


def main(arguments: Sequence[str] | None = None) -> None:
    run(Command, "python -m bytemtp.decompress", arguments)


if __name__ == "__main__":
    run_main(main)

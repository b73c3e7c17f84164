"""Command: a file to few bytes, with a trained run as the model of an arithmetic coder.

Try:  python -m bytemtp.compress RUN FILE --out FILE.bmtp
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from bytemtp.common.cli import run, run_main
from bytemtp.common.files import check_output, read_input, write_output
from bytemtp.common.runtime import byte_progress, log, pick_device
from bytemtp.decoding.coding.codec import encode
from bytemtp.model.checkpoint import load_model


@dataclass(frozen=True)
class Command:
    """Compress a file with a trained run; python -m bytemtp.decompress and the same run give it back, bit for bit.

    An example:

        python -m bytemtp.compress runs/demo notes.txt --out notes.bmtp
        python -m bytemtp.decompress runs/demo notes.bmtp --out notes.txt

    Any file will do, but one of the kind that the run was trained on becomes small.  Decompress on the same kind of
    machine, with the same versions of bytemtp and PyTorch: both sides must compute the same numbers, and that they did
    is always checked at the end.  Keep the run, or the step folder, unchanged: without it the file cannot be read.
    """

    run: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="RUN")]
    """run folder of `bytemtp.train`, or one of its checkpoints/step-* folders"""
    file: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="FILE")]
    """what to compress: any bytes"""
    out: Path
    """file to write; an older one is replaced once the new one is complete"""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N; the kind is stored in the file, for decompressing"""

    def main(self) -> None:
        check_output(self.out)
        data = read_input(self.file)
        model = load_model(self.run, pick_device(self.device).value)
        begun = time.perf_counter()
        with byte_progress("compressed", len(data)) as bar:
            coded = encode(model, data, bar.update)
        seconds = time.perf_counter() - begun
        write_output(self.out, coded.data)
        log(f"written: {self.out} ({summary(len(data), len(coded.data), seconds, coded.passes)})")


def summary(size: int, compressed: int, seconds: float, passes: int) -> str:
    """Both sizes, and how fast it went."""
    sizes = f"{size:,} bytes, compressed {compressed:,}"
    if not size:
        return sizes
    bits = f"{8 * compressed / size:.3f} bits a byte"
    return f"{sizes}, {bits}, {size / seconds:,.0f} bytes/s, {size / passes:.2f} a pass"


def main(arguments: Sequence[str] | None = None) -> None:
    run(Command, "python -m bytemtp.compress", arguments)


if __name__ == "__main__":
    run_main(main)

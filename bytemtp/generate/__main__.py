"""Command: continue a prompt with a trained run.

Try:  python -m bytemtp.generate RUN --prompt "def add(" --max-bytes 200 --compare ar
"""

import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import tyro

from bytemtp.common.cli import discard_output, run, run_main
from bytemtp.common.errors import UserError
from bytemtp.common.files import as_bytes, check_output, read_input, write_json, write_output
from bytemtp.common.runtime import log, pick_device
from bytemtp.decoding.corpus_index import RUN_INDEX, CorpusIndex
from bytemtp.decoding.divergence import Divergence, divergence
from bytemtp.decoding.generate import EngineName, Generation, Mode, generate, generate_stream
from bytemtp.decoding.tree import Shape
from bytemtp.decoding.tree import check as check_tree
from bytemtp.model.checkpoint import load_model, run_folder
from bytemtp.model.model import ByteMTP
from bytemtp.reports.terminal import coloured, whole_characters

COPYING = ("auto", "copy")
"""Modes that may copy from an index."""
NO_INDEX = Path("none")


@dataclass(frozen=True)
class Command:
    """Continue a prompt with a trained run.  Standard output is exactly the new bytes, as soon as they are certain.

    Some examples:

        python -m bytemtp.generate runs/demo --prompt "def add(" --max-bytes 200 --temperature 0.8
        python -m bytemtp.generate runs/demo --prompt "def add(" --max-bytes 200 --compare ar

    With temperature 0 every mode writes the same bytes; above 0 every mode draws from the same distribution.  The first
    is certain in float32, and in bfloat16 with the native engine: with others, bfloat16 may prefer another byte where
    two are nearly as likely, and --compare says so.
    """

    run: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="RUN")]
    """run folder of `bytemtp.train`, or one of its checkpoints/step-* folders"""
    max_bytes: int
    """stop after this many new bytes"""
    prompt: tyro.conf.DisallowNone[str | None] = None
    """text to continue; "" starts a new document"""
    prompt_file: tyro.conf.DisallowNone[str | None] = None
    """file with the bytes to continue; - is standard input"""
    mode: Mode = "auto"
    """ar: one byte a forward pass; speculative: the heads draft, the next pass verifies; tree: several candidates a
    head; draft: another run drafts; copy: what followed the text's last bytes earlier on; auto: copies, heads or
    nothing, whichever promises most speed"""
    index: tyro.conf.DisallowNone[Path | None] = None
    """file of `python -m bytemtp.index`, from which modes auto and copy may copy, too; by default RUN/train.index, if
    the run was trained with --index; none: no file"""
    heads: int = 0
    """use the first so many heads; 0 means all"""
    tree: tyro.conf.DisallowNone[Path | None] = None
    """JSON file with the shape of the tree, a list of paths of ranks: [[0], [0, 0], [1]]"""
    draft: tyro.conf.DisallowNone[Path | None] = None
    """the run that drafts in mode draft"""
    temperature: float = 0.0
    """0 takes the likeliest byte; above 0 draws from softmax(logits / temperature)"""
    top_k: int = 0
    """draw from the k likeliest bytes; 0 means all"""
    top_p: float = 1.0
    """draw from the likeliest bytes that have this probability together"""
    seed: int = 0
    """of the draws"""
    stop: tuple[str, ...] = ()
    """texts before which the output ends"""
    utf8: tyro.conf.FlagCreatePairsOff[bool] = False
    """only bytes that continue well-formed UTF-8"""
    show: tyro.conf.DisallowNone[Literal["accepted"] | None] = None
    """accepted: colour each byte by the draft that it was (standard output is then for eyes)"""
    compare: tyro.conf.DisallowNone[Literal["ar"] | None] = None
    """ar: decode plainly as well, and say on standard error how fast both were and whether they wrote the same"""
    stats: tyro.conf.DisallowNone[Path | None] = None
    """write what was measured to this JSON file"""
    html: tyro.conf.DisallowNone[Path | None] = None
    """write a page to this file that shows which draft each byte was, pass by pass; it loads nothing"""
    engine: EngineName = "auto"
    """native: passes compiled from C++, for CPU cores; torch: tensor operations; recorded: the same, as CUDA graphs (on
    CPU cores by torch.compile, some 10 s whenever a text has doubled, from 256 bytes on); auto: recorded on CUDA, else
    native where it can be, else torch"""
    dtype: Literal["float32", "bfloat16", "int8"] = "float32"
    """of the matrices and what they are multiplied with (int8: in layers); bfloat16 and int8 are faster, and their text
    may be another"""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N"""

    def main(self) -> None:
        check(self)
        prompt, options = read_prompt(self), decoding(self)
        model = load(self.run, self)
        draft = load(self.draft, self) if self.draft else None
        if self.mode in ("speculative", "tree") and model.config.n_future == 1:
            log("the model has one head: nothing is drafted")
        if self.compare:
            generate(model, prompt, 1, draft, **options)  # what is made once, packed weights and so on, is for neither
        out = decode(model, prompt, draft, options, self)
        plain, difference, greedy = None, None, self.temperature == 0
        if self.compare:
            plainly = {"mode": "ar", "heads": 0, "tree": (), "index": None}
            plain = generate(model, prompt, self.max_bytes, **{**options, **plainly})
            if greedy:
                difference = divergence(model, prompt, plain, out, stop=options["stop"], utf8=self.utf8)
            log(comparison(plain, out, difference, greedy=greedy))
        if self.stats:
            write_json(self.stats, out.stats | {"dtype": self.dtype})
        if self.html:
            from bytemtp.reports.page import page  # here, since matplotlib takes half a second to import

            title = f"{self.run}, {self.mode}, temperature {self.temperature:g}, {self.dtype}"
            write_output(self.html, page(prompt, out, title=title, plain=plain, difference=difference, greedy=greedy))


def main(words: Sequence[str] | None = None) -> None:
    run(Command, "python -m bytemtp.generate", words)


def check(arguments: Command) -> None:
    """UserError for options that do not go together, and for files that could not be written at the end."""
    for name in ("tree", "draft"):
        if getattr(arguments, name) is not None and arguments.mode != name:
            raise UserError(f"--{name} is for --mode {name}, but the mode is {arguments.mode}; leave one of them out")
    if arguments.index not in (None, NO_INDEX) and arguments.mode not in COPYING:
        raise UserError(
            f"--index is for the modes auto and copy, but the mode is {arguments.mode}; leave one of them out"
        )
    if arguments.mode == "draft" and arguments.draft is None:
        raise UserError("--mode draft needs a draft model; name its run with --draft RUN2")
    for path in (arguments.stats, arguments.html):
        check_output(path)


def load(run: Path, arguments: Command) -> ByteMTP:
    """The model of a run on the device and in the arithmetic that were asked for."""
    model = load_model(run, pick_device(arguments.device).value)
    if arguments.dtype != "float32":
        model.use(dtype=getattr(torch, arguments.dtype))
    return model


def decoding(arguments: Command) -> dict[str, Any]:
    """The fields of `Options`."""
    tree = () if arguments.tree is None else read_tree(arguments.tree)
    names = ("mode", "heads", "temperature", "top_k", "top_p", "seed", "utf8", "engine")
    stop = [as_bytes(text) for text in arguments.stop]
    index = index_of(arguments)
    return {"tree": tree, "stop": stop, "index": index, **{name: getattr(arguments, name) for name in names}}


def index_of(arguments: Command) -> CorpusIndex | None:
    """The one that is named, or else that of the run."""
    if arguments.index is not None:
        return None if arguments.index == NO_INDEX else CorpusIndex(arguments.index)
    path = run_folder(arguments.run) / RUN_INDEX
    if arguments.mode not in COPYING or not path.exists():
        return None
    log(f"index: {path}")
    return CorpusIndex(path)


def read_tree(path: Path) -> Shape:
    """UserError unless the file holds a tree with a node."""
    try:
        tree = check_tree(json.loads(path.read_text(encoding="utf-8-sig")))
    except OSError as error:
        raise UserError(f"cannot use the tree in {path}: {error.strerror}") from error
    except RecursionError:
        raise UserError(f"cannot use the tree in {path}: no list of paths of ranks like [[0], [0, 0], [1]]") from None
    except ValueError as error:
        raise UserError(f"cannot use the tree in {path}: {error}") from error
    if not tree:
        raise UserError(f"cannot use the tree in {path}: it has no node; --mode ar decodes without drafts")
    return tree


def decode(
    model: ByteMTP, prompt: bytes, draft: ByteMTP | None, options: dict[str, Any], arguments: Command
) -> Generation:
    """Decode and write to standard output: coloured at the end, or in whole characters on the way."""
    result: list[Generation] = []

    def pieces() -> Iterator[bytes]:
        result.append((yield from generate_stream(model, prompt, arguments.max_bytes, draft, **options)))

    for piece in whole_characters(pieces()):
        if arguments.show is None:
            write(piece, arguments)
    if arguments.show is not None:
        write(coloured(result[0]), arguments)
    return result[0]


def write(data: bytes, arguments: Command) -> None:
    """BrokenPipeError if nobody reads any more, unless something else was asked for beside the text."""
    try:
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()
    except BrokenPipeError:
        if not (arguments.stats or arguments.html or arguments.compare):
            raise
        discard_output()


def comparison(plain: Generation, fast: Generation, difference: Divergence | None, *, greedy: bool) -> str:
    """Both speeds, and whether the same was written, on a line each; `difference` as `divergence` found it."""
    lines = [
        f"{s['mode']:12} {s['bytes_per_s']:8.1f} bytes/s, {s['bytes_per_forward']:.2f} a forward pass"
        for s in (plain.stats, fast.stats)
    ]
    if plain.data and fast.data:
        lines.append(f"speed-up     {fast.stats['bytes_per_s'] / plain.stats['bytes_per_s']:8.2f}x")
    if greedy:
        lines.append("identical: yes" if plain.data == fast.data else f"identical: no, {difference}")
    else:
        lines.append("drawn from the same distribution; compare bytes at temperature 0")
    return "\n".join(lines)


def read_prompt(arguments: Command) -> bytes:
    """The bytes of --prompt or --prompt-file."""
    if (arguments.prompt is None) == (arguments.prompt_file is None):
        raise UserError("give either --prompt TEXT or --prompt-file FILE (- for standard input)")
    if arguments.prompt is not None:
        return as_bytes(arguments.prompt)
    return read_input(str(arguments.prompt_file))


if __name__ == "__main__":
    run_main(main)

"""Command: write a run as a Hugging Face folder.

python -m bytemtp.export RUN --out DIR --check
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from bytemtp.common.cli import run, run_main
from bytemtp.model.checkpoint import load_model
from bytemtp.model.huggingface import architecture, check, export, import_transformers


@dataclass(frozen=True)
class Command:
    """Write a run as a Hugging Face folder: trunk and head 1 as a Mistral, and a byte tokenizer; no remote code.

    Mistral is Llama with a sliding window: a byte sees as far back as the run was trained to look. A run with
    model.qk_norm becomes a Qwen3, which has those norms and can have that window.

    An example:

        python -m bytemtp.export runs/demo --out exported --check
    """

    run: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="RUN")]
    """folder of the run, or one of its checkpoints/step-* folders"""
    out: Path
    """new or empty folder to write"""
    check: tyro.conf.FlagCreatePairsOff[bool] = False
    """load the folder with transformers, and compare logits and 1000 random texts with ours (extra: export)"""

    def main(self) -> None:
        if self.check:
            import_transformers()
        model = load_model(self.run)
        export(model, self.out)
        print(f"written: {self.out} ({architecture(model)}, {len(model.first_blocks())} layers)")
        if self.check:
            print(check(model, self.out))


def main(arguments: Sequence[str] | None = None) -> None:
    run(Command, "python -m bytemtp.export", arguments)


if __name__ == "__main__":
    run_main(main)

"""Write what follows from results.jsonl into the pages: tables, pictures, and the gallery of experiments/README.md.

python -m experiments.readme             all experiments; what `make figures` does
python -m experiments.readme planning    one of them, and the gallery

In experiments/NAME/README.md `<!-- table PRESET -->` and `<!-- end -->` enclose the table of a preset, which also says
which cells have not been run.  The paragraph that begins with `**Answer.**` is what the gallery says under the picture
of the first preset.
"""

import argparse
import re
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

from bytemtp.common.cli import run_main
from bytemtp.common.errors import UserError
from bytemtp.common.files import write_output
from bytemtp.reports.figures import save_picture
from experiments.grid import FOLDER, Experiment
from experiments.tables import provenance

GALLERY = FOLDER / "README.md"
MARKED = r"(<!-- {} -->\n)(?:(?!<!-- table ).)*?(<!-- end -->)"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help="all experiments unless given")
    for name in parser.parse_args(arguments).names or names():
        experiment = load(name)
        write_output(page_of(experiment), filled(experiment))
        draw(experiment)
    write_output(GALLERY, gallery())


def names() -> list[str]:
    """Of the folders that are experiments."""
    return sorted(path.parent.name for path in FOLDER.glob("*/recipe.toml"))


def load(name: str) -> Experiment:
    if name not in names():
        raise UserError(f"no experiment {name!r}; choose from {', '.join(names())}")
    experiment: Experiment = import_module(f"experiments.{name}.__main__").EXPERIMENT
    return experiment


def page_of(experiment: Experiment) -> Path:
    return experiment.folder / "README.md"


def filled(experiment: Experiment) -> str:
    """The experiment's page with its tables as results.jsonl has them now."""
    text = page_of(experiment).read_text(encoding="utf-8")
    for preset in experiment.presets():
        if lines := experiment.lines(preset):
            about = [provenance(lines), *not_run(experiment.not_run(preset))]
            text = put(text, f"table {preset}", f"{experiment.table(lines)}\n\n{' '.join(about)}")
    return text


def not_run(names: Sequence[str]) -> list[str]:
    """A sentence on these cells, if there are any."""
    return [f"Not run: {', '.join(f'`{name}`' for name in names)}."] if names else []


def put(text: str, mark: str, content: str) -> str:
    """`content` between `<!-- mark -->` and `<!-- end -->`.  UserError unless they are there once."""
    result, count = re.subn(
        MARKED.format(re.escape(mark)), lambda found: f"{found[1]}{content}\n{found[2]}", text, flags=re.DOTALL
    )
    if count != 1:
        raise UserError(f"the page has {count} places <!-- {mark} --> ... <!-- end -->; give it one")
    return result


def draw(experiment: Experiment) -> None:
    for preset in experiment.presets():
        if lines := experiment.lines(preset):
            save_picture(experiment.draw(lines), experiment.folder / f"{preset}.png")


def gallery() -> str:
    """experiments/README.md with a picture and the answer of every experiment."""
    return put(GALLERY.read_text(encoding="utf-8"), "gallery", "\n\n".join(entry(load(name)) for name in names()))


def entry(experiment: Experiment) -> str:
    text = page_of(experiment).read_text(encoding="utf-8")
    title, verdict = (
        re.search(r"^# (.*)", text),
        re.search(r"^\*\*Answer\.\*\* (.*?)\n\n", text, re.DOTALL | re.MULTILINE),
    )
    if title is None or verdict is None:
        raise UserError(f"experiments/{experiment.name}/README.md needs a title and a paragraph **Answer.** ...")
    preset = next(iter(experiment.presets()))
    picture = [f"![{title[1]}]({experiment.name}/{preset}.png)"] if experiment.lines(preset) else []
    return "\n\n".join([f"### [{experiment.name}]({experiment.name}/README.md): {title[1]}", *picture, verdict[1]])


if __name__ == "__main__":
    run_main(main)

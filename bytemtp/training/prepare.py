"""What a run is to do, before its first step: planned without writing, then begun in a folder, then written down.

Try:  python -m bytemtp.train PATH --out RUN --train.steps 1, then  cat RUN/config.toml
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bytemtp.common.files import write_output, writing
from bytemtp.common.runtime import log
from bytemtp.common.settings import Settings, load_settings, to_toml
from bytemtp.data.sources import absolute
from bytemtp.training.batches import (
    check_paths,
    seq_len_at,
    try_training,
    try_validation,
    with_steps_of_epochs,
    with_sweeps,
)
from bytemtp.training.corpus import UNCHANGED, Change, change_of, files_of, write_files
from bytemtp.training.distributed import job
from bytemtp.training.resume import check_resumable, goes_on, warn_if_elsewhere, with_absolute_paths
from bytemtp.training.run_folder import check_outside, claim, clear, incoming, remove_partial
from bytemtp.training.start import check_frozen, check_size, for_frozen_trunk, record_source


def plan(
    settings: Settings,
    paths: Sequence[str],
    run: Path,
    *,
    resume: bool,
    overwrite: bool,
    preset: str,
    init: Path | None,
) -> tuple[Settings, dict[str, Any], bool]:
    """What to train: the settings, what config.toml says of the run, and whether it goes on.  It writes nothing."""
    if goes_on(run):
        settings, preset, init = load_settings(run / "config.toml")[0], "", None
        resume, overwrite = True, False
    with writing(run):
        claim(run, resume=resume, overwrite=overwrite)
    settings = for_frozen_trunk(with_absolute_paths(settings))
    info: dict[str, Any] = {"preset": preset, "paths": [*map(absolute, paths)]}
    info |= record_source(init, run, resume=resume) | ({"job": job()} if job() else {})
    if resume:
        settings, info = check_resumable(run, settings, info)
    else:
        if settings.train.freeze != "none":
            log("train.freeze trunk: heads 2 to n learn from all rows, long ones, from the first step on")
        check_paths(paths, settings)
    check_frozen(settings.train, has_source="init" in info)
    check_size(settings.model)
    return settings, info, resume


def write_down(
    settings: Settings, run: Path, info: dict[str, Any], now: dict[str, Any], *, resume: bool
) -> tuple[Change, list[bytes]]:
    """Write down what is trained on in a folder that is ours: how the files have changed, and the files if they are
    still to be written down, with a checkpoint.

    info: what config.toml says of the run; now: what is to be added to it.
    """
    warn_if_elsewhere(info, now)
    files = files_of(settings, info["paths"]) if resume else []
    change = change_of(run, settings, files) if resume else UNCHANGED
    write_output(run / "config.toml", to_toml(settings, info | now))
    if not resume:
        write_files(run, files_of(settings, info["paths"]))  # only now is the run folder known for what it is
    return change, files


def begin(run: Path, settings: Settings, paths: Sequence[str], *, resume: bool, overwrite: bool) -> Settings:
    """Tidy up the run, or take the place of an old one once the corpus has shown that it can be read.

    It has to fill a row of full length, too, if rows are shorter at first: better told now than in mid-run.

    Returns the settings with the size of the corpus in.
    """
    claim(run, resume=resume, overwrite=overwrite and not resume)  # another process may have been there meanwhile
    if resume:
        with writing(run):
            remove_partial(run)
        return settings
    check_outside(run, [*paths, *settings.data.valid_paths])
    with incoming(run, paths, settings.data) as now:
        settings = with_steps_of_epochs(with_sweeps(settings, now), now)
        is_taken = (run / "config.toml").exists()
        if is_taken or seq_len_at(settings.train, 0, 0.0) < settings.train.seq_len:
            try_training(settings, now)
        if is_taken:
            try_validation(settings, now)
    with writing(run):
        clear(run)
    return settings

"""What a run reads: its training rows without end, its validation batches, and how many steps an epoch takes.

Held out is a share of the documents of PATH (`data.valid_fraction`) or, if the user names files for it, all of those
and nothing of PATH (`data.valid_paths`).

Try:  python -c "from bytemtp.common.settings import *; from bytemtp.training.batches import *
      print(with_steps_of_epochs(Settings(train=TrainConfig(epochs=2)), ['README.md']).train.steps)"
"""

import math
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from itertools import islice

import torch

from bytemtp.common.errors import UserError
from bytemtp.common.runtime import log
from bytemtp.common.settings import DataConfig, Settings, TrainConfig, changed, check_weights
from bytemtp.data.documents import Reading
from bytemtp.data.leave_out import held_out_paths
from bytemtp.data.rows import EmptySplit, Split
from bytemtp.data.sources import SkipLog, Source, absolute, as_text, find, real_name
from bytemtp.data.stream import Batch, Cursor, Stream, choose_sweeps, stream
from bytemtp.training.distributed import ALONE, World
from bytemtp.training.loss import rows_of

VALID_SEED = 0
"""Order of the validation rows, the same in all runs, so that their bits per byte can be compared."""
FIRST_ROWS_SEED = 1 << 32
"""Added to `train.seed` for the order of the shorter rows at the start of a run."""


def check_paths(paths: Sequence[str], settings: Settings) -> None:
    """UserError if there is nothing to read: before an old run is deleted for the sake of a misspelt path."""
    if not paths:
        raise UserError("no PATH given; name the files, folders or globs to train on, or - for standard input")
    check_weights(settings.data.weights, len(paths), "data.weights")
    skip_log = SkipLog(settings.data.on_corrupt)
    sources = sources_of(settings, [*map(absolute, paths)], skip_log)  # which patterns are compared with
    left_out = f"; left out: {as_text(skip_log.left_out)}" if skip_log.left_out else ""
    log(f"data: {len(sources):,} files in {', '.join(paths)}{left_out}")
    for pattern in [x for x in dict.fromkeys(settings.data.exclude) if x not in skip_log.left_out]:
        log(f"{pattern!r} of data.exclude leaves out no file or folder by itself (members of archives are told later)")
    if settings.data.valid_paths:
        _check_valid_paths(settings.data, sources)


def grouped(settings: Settings, world: World) -> World:
    """The processes in groups of `train.context_parallel`, which share out each row.  UserError unless they can."""
    model, train, parts = settings.model, settings.train, settings.train.context_parallel
    divided = {
        "the number of processes": world.size,
        "model.attention_heads": model.attention_heads,
        "the number of heads of keys and values": model.key_value_heads,
        "train.seq_len": train.seq_len,
        "train.first_seq_len": seq_len_at(train, 0, 0.0),
    }
    for name, count in divided.items():
        if count % parts:
            raise UserError(
                f"train.context_parallel is {parts}, which does not divide {name}, {count}; set it to 1 or a divisor"
            )
    if parts > 1 and (model.order_head or train.tv_from < 1):
        what = "an order head" if model.order_head else "total variation (train.tv_from)"
        raise UserError(f"{what} looks beyond its part of a row; set train.context_parallel to 1")
    return replace(world, context=parts)


def check_shares(settings: Settings, world: World) -> None:
    """UserError unless each micro-batch, and what far heads learn from of it, gives all processes as many rows.

    Rows are dealt in turn, so the first k * size rows of a micro-batch are the first k of each process.
    """
    train, size = settings.train, world.readers
    sharers = f"{size} processes" if world.context == 1 else f"{size} groups of {world.context} processes"
    for seq_len in {train.seq_len, seq_len_at(train, 0, 0.0)}:
        rows = batch_rows(train, seq_len) // train.accumulate
        if rows % size:
            raise UserError(
                f"train.batch_size {train.batch_size} in {train.accumulate} rounds are {rows} rows of {seq_len} bytes "
                f"each, which {sharers} cannot share evenly; make it a multiple of {train.accumulate * size}, "
                f"or lower train.accumulate"
            )
        if settings.model.has_far_heads and (far := rows_of(rows, train.far_rows)) % size:
            raise UserError(
                f"train.far_rows {train.far_rows} of {rows} rows are {far}, which {sharers} cannot share "
                f"evenly; make it a multiple of {size / rows:g}"
            )


def sources_of(settings: Settings, paths: Sequence[str], skip_log: SkipLog) -> list[Source]:
    """The files to train on.  UserError if there are none."""
    data = settings.data
    reading = Reading(format=data.format, exclude=data.exclude)
    return find(paths, skip_log, replace(reading.leave_out, held_out=held_out_paths(data.valid_paths)))


def try_training(settings: Settings, paths: Sequence[str]) -> None:
    """UserError unless there is a batch to train on, of rows of full length."""
    with training_rows(settings, paths, None, seq_len=settings.train.seq_len, pin_memory=False) as rows:
        next(rows)


def try_validation(settings: Settings, paths: Sequence[str]) -> None:
    """UserError unless there is a batch to validate on, where that is wanted."""
    if settings.data.valid_paths or settings.data.valid_fraction:
        with suppress(EmptySplit), _valid_rows(settings, paths, 1, pin_memory=False, world=ALONE) as rows:
            next(rows)


def training_rows(
    settings: Settings,
    paths: Sequence[str],
    cursor: Cursor | None,
    world: World = ALONE,
    *,
    seq_len: int,
    pin_memory: bool,
) -> Stream:
    """Batches of rows of `seq_len` bytes without end, from a cursor on; as many bytes a batch as `train` says.

    Of several processes each gets its share of every batch and, since rows are dealt in turn, of every micro-batch.
    Rows of another length than `train.seq_len` come in another order if they are shuffled, so that growing rows do not
    begin with the same documents again.
    """
    train, data = settings.train, settings.data
    split, fraction = training_split(data)
    return stream(
        paths,
        seq_len,
        batch_rows(train, seq_len) // world.readers,
        train.seed if seq_len == train.seq_len else train.seed + FIRST_ROWS_SEED,
        n_future=settings.model.n_future,
        epochs=None,
        shuffle=data.shuffle,
        split=split,
        valid_fraction=fraction,
        exclude=data.exclude,
        held_out=data.valid_paths,
        weights=data.weights,
        sweeps=max(1, data.sweeps),  # 0 in the config.toml of a run from before there were sweeps
        **data.reading(),
        rank=world.reader,
        world_size=world.readers,
        cursor=cursor,
        pin_memory=pin_memory,
    )


def training_split(data: DataConfig) -> tuple[Split, float]:
    """The split of PATH that is trained on, and the share of documents that it lacks."""
    fraction = 0.0 if data.valid_paths else data.valid_fraction
    return ("train" if fraction else "all"), fraction


def share_done(train: TrainConfig, step: int, elapsed_s: float) -> float:
    """Of the run, before optimiser step number `step` (from 0), `elapsed_s` seconds into training."""
    return elapsed_s / (60 * train.minutes) if train.minutes else step / max(1, train.steps)


def far_rows_at(train: TrainConfig, done: float) -> float:
    """Share of a batch's rows that heads 2 to n learn from when the share `done` of the run is over."""
    return train.far_rows if done >= train.far_from else 0.0


def for_drafts_at(train: TrainConfig, done: float) -> bool:
    """Whether heads 2 to n learn to be accepted as drafts when the share `done` of the run is over."""
    return train.tv_from < 1 and done >= train.tv_from


def seq_len_at(train: TrainConfig, step: int, elapsed_s: float) -> int:
    """Bytes of the rows of optimiser step number `step` (from 0), `elapsed_s` seconds into training."""
    is_first = share_done(train, step, elapsed_s) < train.grow_at
    grows = 0 < train.first_seq_len < train.seq_len
    return train.first_seq_len if is_first and grows else train.seq_len


def batch_rows(train: TrainConfig, seq_len: int) -> int:
    """Rows of `seq_len` bytes in a batch: as many bytes as with rows of `train.seq_len`, or a little less."""
    return train.batch_size * (train.seq_len // seq_len)


def collect_valid(settings: Settings, paths: Sequence[str], world: World = ALONE, *, pin_memory: bool) -> list[Batch]:
    """The first `train.valid_bytes` of held-out rows, in batches of one round of forward, kept in memory.

    Of several processes each has its share, in as many batches as the others have, though there may be nothing in
    them: those that share weights must run every layer together.
    """
    train, data = settings.train, settings.data
    if not data.valid_paths and not data.valid_fraction:
        log("validation: none, because data.valid_fraction is 0")
        return []
    round_rows = train.batch_size // train.accumulate
    try:
        with _valid_rows(settings, paths, round_rows // world.readers, pin_memory, world) as rows:
            batches = list(islice(rows, -(-train.valid_bytes // (round_rows * train.seq_len))))
            for name, reason in rows.skipped if data.valid_paths else ():  # of PATH, training tells them
                log(f"left out of validation: {name}: {reason}")
    except EmptySplit:
        log(
            "warning: no document fell into the validation split; there will be no validation (raise "
            "data.valid_fraction, or name files to validate on with --data.valid-paths)"
        )
        return []
    batches += [nothing(settings)] * (world.largest(len(batches)) - len(batches))
    count = count_rows(batches, world)
    log(f"validation: {count * train.seq_len:,} bytes in {count:,} rows")
    return batches


def count_rows(batches: Sequence[Batch], world: World) -> int:
    """Of all readers; rows with nothing in them do not count."""
    mine = sum(int((batch.lengths > 0).sum()) for batch in batches)
    return int(world.sum(torch.tensor(mine))) // world.context


def nothing(settings: Settings) -> Batch:
    """A row of padding."""
    octets = torch.zeros(1, settings.train.seq_len + settings.model.n_future, dtype=torch.uint8)
    eots, lengths = torch.zeros(0, 2, dtype=torch.int64), torch.zeros(1, dtype=torch.int64)
    return Batch(octets, eots, lengths, Cursor())


def with_sweeps(settings: Settings, paths: Sequence[str]) -> Settings:
    """The settings with `data.sweeps` chosen, if that is left open."""
    data = settings.data
    if data.sweeps:
        return settings
    sweeps = choose_sweeps(sources_of(settings, paths, SkipLog(data.on_corrupt))) if data.shuffle else 1
    if sweeps > 1:
        log(f"data.sweeps: {sweeps} (large files; each sweep reads another random share of their documents)")
    return changed(settings, **{"data.sweeps": sweeps})


def with_steps_of_epochs(settings: Settings, paths: Sequence[str]) -> Settings:
    """The settings with `train.steps` as `train.epochs` asks for, if it does: it reads the corpus once to count it.

    The steps cover the ids of so many epochs, the last one perhaps with rows of the epoch after them.
    """
    train = settings.train
    if not train.epochs:
        return settings
    log(f"train.epochs {train.epochs}: counting the data")
    with training_rows(settings, paths, None, seq_len=train.seq_len, pin_memory=False) as rows:
        ids = rows.count_epoch()
    steps = math.ceil(train.epochs * ids / mean_batch_bytes(train))
    log(
        f"train.epochs {train.epochs}: {steps:,} steps of {train.batch_size} x {train.seq_len} bytes, "
        f"since an epoch has {ids:,}"
    )
    if settings.data.shuffle and seq_len_at(train, 0, 0.0) < train.seq_len:
        log(
            "rows grow during the run, and long ones begin a pass of their own; "
            "train.first_seq_len 0 keeps passes whole"
        )
    return changed(settings, **{"train.steps": steps})


def mean_batch_bytes(train: TrainConfig) -> float:
    """Over a run: the rows of its first part may be a little less than `train.seq_len` together."""
    first = seq_len_at(train, 0, 0.0)
    short = train.grow_at if first < train.seq_len else 0.0
    of_first, of_last = (batch_rows(train, seq_len) * seq_len for seq_len in (first, train.seq_len))
    return short * of_first + (1 - short) * of_last


def _valid_rows(settings: Settings, paths: Sequence[str], batch_size: int, pin_memory: bool, world: World) -> Stream:
    """The held-out rows once, in an order of their own."""
    data = settings.data
    return stream(
        data.valid_paths or paths,
        settings.train.seq_len,
        batch_size,
        VALID_SEED,
        n_future=settings.model.n_future,
        split="all" if data.valid_paths else "valid",
        valid_fraction=0.0 if data.valid_paths else data.valid_fraction,
        exclude=() if data.valid_paths else data.exclude,  # what is named for it is wanted
        **data.reading(),
        rank=world.reader,
        world_size=world.readers,
        pin_memory=pin_memory,
    )


def _check_valid_paths(data: DataConfig, training: list[Source]) -> None:
    """UserError if one is missing, unless it may be left out as damaged, or is trained on as well."""
    try:
        sources = find(data.valid_paths, SkipLog(data.on_corrupt))
    except UserError as error:
        raise UserError(f"data.valid_paths: {error}") from None
    trained = {real_name(source) for source in training}
    if both := [source.name for source in sources if real_name(source) in trained]:
        raise UserError(
            f"data.valid_paths: {both[0]} is also among the files to train on; name PATHs that leave it out"
        )
    log(f"held out: {len(sources):,} files in {', '.join(data.valid_paths)}")

"""The training loop: batches in; checkpoints, metrics and a model out.

    step:  batch -> backward in `accumulate` rounds -> clip -> optimiser's step
    after: a train line every log_every steps, a validation every valid_every, a checkpoint every checkpoint_every and
           after each validation that is the best so far

On a CPU a run is a function of its settings, its corpus and the machine: after any kill or stop, `train(...,
resume=True)` goes on to the same weights, bit for bit, as a run that nobody stopped.  Only `train.minutes` breaks this,
because the clock then decides about the learning rate and the end.  On CUDA the same holds up to rounding: kernels add
gradients in whatever order they get to them.

A step never waits for a CUDA device, so that the device always has work; what is read of it (losses, norms) is read
where something is written.

Try:  python -m bytemtp.train --help
"""

import math
import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import asdict, dataclass, replace
from functools import reduce
from operator import add
from pathlib import Path
from typing import Any, Literal, NoReturn

import torch
from torch import Tensor

from bytemtp.common.errors import UserError
from bytemtp.common.runtime import pick_device
from bytemtp.common.settings import Settings, TrainConfig, head_weights, scheduled_weights
from bytemtp.common.shards import local
from bytemtp.data.stream import Batch, Cursor, Stream
from bytemtp.model.checkpoint import TrainState, find_latest, last_good, latest, load_training, save, step_folder
from bytemtp.model.model import ByteMTP
from bytemtp.training.auto import apply, check_compiler, choose
from bytemtp.training.batches import (
    check_shares,
    collect_valid,
    count_rows,
    far_rows_at,
    for_drafts_at,
    grouped,
    seq_len_at,
    share_done,
    training_rows,
)
from bytemtp.training.corpus import UNCHANGED, Change, write_files
from bytemtp.training.cost import Flops, peak_flops, told_if_full
from bytemtp.training.distributed import ALONE, World
from bytemtp.training.interrupts import Interrupts
from bytemtp.training.loss import HeadLosses, backward, evaluate, trained_targets, valid_counts
from bytemtp.training.optimizer import Optimizers, learning_rate, set_learning_rate
from bytemtp.training.prepare import begin, plan, write_down
from bytemtp.training.progress import MetricsLine, NoProgress, Progress, finite, peak_memory_bytes
from bytemtp.training.repeats import repeating_rows, with_repeats
from bytemtp.training.resume import facts
from bytemtp.training.run_folder import locked, on_disk
from bytemtp.training.sharding import build, gathered, is_split, look_ahead, sum_over_copies, will_shard
from bytemtp.training.watch import Watch

Sampler = Callable[[ByteMTP], bytes]


@dataclass(frozen=True)
class TrainOutcome:
    """How a call of `train` ended."""

    state: TrainState
    checkpoint: Path
    valid: HeadLosses | None
    """the last validation of this call"""
    finished: bool
    """False if stopped early, by `stop_after` or a signal"""
    signal: int
    """number of the signal that stopped it, or 0"""


def train(
    settings: Settings,
    paths: Sequence[str],
    run: Path,
    *,
    device: str = "auto",
    resume: bool = False,
    overwrite: bool = False,
    stop_after: int = 0,
    preset: str = "",
    init: Path | None = None,
    sample: Sampler | None = None,
    world: World = ALONE,
) -> TrainOutcome:
    """Train a model into the folder `run`, or go on with the run there.

    stop_after: pause when that many steps are done in all; 0 means train to the end.
    preset: the name of where `settings` started from, only to be written down.
    init: a run, a step folder or a Hugging Face folder whose weights to start from (`bytemtp.model.initial`).
    sample: makes the bytes that are shown after each validation.
    world: the processes that call this together, with the same arguments (`bytemtp.training.distributed`).

    UserError for bad input, a folder that is taken or in use or cannot be written, a damaged checkpoint, too little
    memory, or a loss or weights that are not finite.
    """
    if stop_after < 0:
        raise UserError(f"stop_after is {stop_after}; it must be a step, or 0 to train to the end")
    settings, info, resume = world.share(
        lambda: plan(settings, paths, run, resume=resume, overwrite=overwrite, preset=preset, init=init)
    )
    world = grouped(settings, world)
    check_shares(settings, world)
    place = pick_device(device)
    world.check_device(place.value)
    check_compiler(settings.train, place.value)
    sharded = will_shard(settings, place.value, world)
    with told_if_full(settings, world.size):
        # PyTorch seeds itself from the clock; nothing here draws from it, but a sampler or a later layer may.
        torch.manual_seed(settings.train.seed)
        source = Path(info["init"]) if "init" in info and not (resume and latest(run)) else None
        model = build(settings, source, place.value, sharded=sharded)
        with locked(run) if world.is_first else nullcontext():
            settings = world.share(lambda: begin(run, settings, info["paths"], resume=resume, overwrite=overwrite))
            settings = choose(settings, model, place)
            now = facts(model, world)
            change, files = world.share(lambda: write_down(settings, run, info, now, resume=resume))
            corpus = on_disk(info["paths"], run)
            with Trainer(settings, corpus, run, model, sample, world, files=files, change=change) as trainer:
                return trainer.run(stop_after)


class Trainer:
    """One stretch of a run, from its newest checkpoint on.  A context manager."""

    def __init__(
        self,
        settings: Settings,
        paths: Sequence[str],
        run: Path,
        model: ByteMTP,
        sample: Sampler | None,
        world: World = ALONE,
        *,
        files: Sequence[bytes] = (),
        change: Change = UNCHANGED,
    ) -> None:
        """files: what is trained on from here (`bytemtp.training.corpus`), to be written down with the first checkpoint
        of it; none if that is done.
        change: in what was trained on before; where files have moved the run goes on with the next epoch.
        """
        self.settings, self.paths, self.folder, self.model, self.world = settings, paths, run, model, world
        self.sample = sample if world.is_first and not is_split(model) else None
        self.train = settings.train
        self.part = world.part()
        self.head_weights = head_weights(self.train.head_weights, settings.model.n_future)
        self.optimizer = Optimizers(model, self.train, world)
        self.state = self._restore(change)
        self.files, self.first_step = files, self.state.step
        self.unlogged = _unpack(self.state.unlogged, model.device)
        if self.unlogged is not None and not world.is_first:  # which has what was summed over all
            self.unlogged = self._no_losses()
        self.lr = 0.0
        self.repeating: int | None = None
        self.for_drafts = self.state.far_heads and for_drafts_at(
            self.train, share_done(self.train, max(0, self.state.step - 1), self.state.elapsed_s)
        )
        self.watch = Watch(model.device)
        self.flops = {share: Flops.of_model(model, share) for share in (0.0, self.train.far_rows)}
        self.peak = peak_flops(model.device, model.dtype)
        self._checks_every_step = model.device.type == "cpu"  # where nobody has to wait for it
        self._pin_memory = model.device.type == "cuda"
        self.valid = collect_valid(settings, paths, world, pin_memory=self._pin_memory)
        self.valid_rows = count_rows(self.valid, world)
        self.valid_losses: HeadLosses | None = None
        self._timed_bytes, self._timed_seconds, self._timed_flops = 0, 0.0, 0.0
        self._told: set[str] = set()
        self._started = time.monotonic() - self.state.elapsed_s

    def __enter__(self) -> "Trainer":
        with ExitStack() as stack:
            self.batches = self._open_rows()
            stack.callback(lambda: self.batches.close())
            place = self.state.step, self.state.elapsed_s
            progress = Progress(self.folder, self.train, *place) if self.world.is_first else NoProgress()
            self.progress = stack.enter_context(progress)
            self.interrupts = stack.enter_context(Interrupts())
            self._exits = stack.pop_all()
        return self

    def __exit__(self, *error: Any) -> None:
        self._exits.__exit__(*error)

    def run(self, stop_after: int) -> TrainOutcome:
        """Train until the end, step `stop_after`, or a signal; save; and say how it ended."""
        finished = self._is_finished()
        self._look_ahead()
        self._begin_far_heads(0.0)  # those that do not wait, also in a checkpoint from before heads could
        if finished and (self.state.step == 0 or self._lacks_validation()):
            self._validate()
        while not (finished or self._signal() or 0 < stop_after <= self.state.step):
            self._step()
            finished = self._is_finished()
            if finished or self._is_due(self.train.log_every):
                self._log_unlogged()
            if finished or self._is_due(self.train.valid_every):
                self._validate()
            if not finished and (self.state.is_best or self._is_due(self.train.checkpoint_every)):
                self._save()
        checkpoint = self._save()
        return TrainOutcome(self.state, checkpoint, self.valid_losses, finished, self._signal())

    def _lacks_validation(self) -> bool:
        """Whether this step could be validated and was not, as where fewer steps have ended the run."""
        return self.valid_rows > 0 and not self.world.share(lambda: self.progress.has_validation(self.state.step))

    def _signal(self) -> int:
        """That came to any of the processes."""
        return self.world.largest(self.interrupts.signal)

    def _elapsed(self) -> float:
        """By the first process's clock, where anything depends on it."""
        now = time.monotonic() - self._started
        return self.world.share(lambda: now) if self.train.minutes else now

    def _open_rows(self) -> Stream:
        """The rows to go on with: those of the cursor, unless they are to be longer from here on.

        They never become shorter again: of a run that is prolonged, what it has learned from long rows is kept.
        """
        before = self.state.seq_len or self.train.seq_len
        seq_len = max(self.state.seq_len, seq_len_at(self.train, self.state.step, self.state.elapsed_s))
        if self.state.step and self._is_finished():
            seq_len = before  # nothing will be learned from longer ones
        fields = self.state.cursor
        if seq_len != before and fields:  # in an order of their own, or on from here if files come as they lie
            row = (fields["row"] - fields["first_row"]) * before // seq_len
            fields = None if self.settings.data.shuffle else fields | {"first_row": 0, "row": row, "corpus": ""}
        passes = self.state.epochs_before if fields else self._epoch()
        self.state = replace(self.state, epochs_before=passes, seq_len=seq_len, cursor=fields)
        self.model.trained_length = seq_len  # of samples
        cursor = None if fields is None else Cursor(**fields)
        return training_rows(
            self.settings, self.paths, cursor, self.world, seq_len=seq_len, pin_memory=self._pin_memory
        )

    def _grow(self) -> None:
        """Go over to rows of `train.seq_len` when it is time."""
        if seq_len_at(self.train, self.state.step, self.state.elapsed_s) > self.state.seq_len:
            self._tell_skipped()
            self.batches.close()
            self.batches = self._open_rows()
            self.progress.say(f"rows have {self.state.seq_len} bytes from step {self.state.step + 1} on")

    def _step(self) -> None:
        began = time.monotonic()
        self._grow()
        batch = self._with_repeats(next(self.batches))
        losses = self._backward(batch)
        norm = self.optimizer.clip(self.train.grad_clip)
        self.watch.note(self.state.step + 1, losses.mean_there, norm)
        if self._checks_every_step:
            self._check_finite()
        self.lr = learning_rate(self.train, self.state.step, self.state.elapsed_s)
        set_learning_rate(self.optimizer, self.lr)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.unlogged = losses if self.unlogged is None else self.unlogged + losses
        self._advance(batch, time.monotonic() - began)

    def _with_repeats(self, batch: Batch) -> Batch:
        """The batch with the rows that repeat themselves at this step."""
        step, rows = self.state.step, len(batch.octets) * self.world.readers
        count = repeating_rows(self.train, rows, share_done(self.train, step, self.state.elapsed_s))
        if self.repeating is None and step:
            self.repeating = count  # as before the run was stopped
        if count != (self.repeating or 0):
            self.repeating = count
            self.progress.say(f"random bytes that repeat: {count} of a batch's {rows} rows, from step {step + 1} on")
        if not count:
            return batch
        return with_repeats(batch, count, self.train.accumulate, (self.train.seed, step), self.world)

    @property
    def _heads_wait(self) -> bool:
        """Whether there are heads that have not begun to learn; those on head 1's path do so at once."""
        return not self.state.far_heads and self.settings.model.has_far_heads

    def _begin_far_heads(self, done: float) -> None:
        """Heads 2 to n learn from this step on, if it is time: once they have begun, they go on."""
        if not self.state.far_heads and far_rows_at(self.train, done):
            if self.train.far_from and self.state.step and self._heads_wait:
                self.progress.say(f"heads 2 to {len(self.head_weights)} learn from step {self.state.step + 1} on")
            self.state = replace(self.state, far_heads=True)
            self._look_ahead()

    def _begin_drafts(self, done: float) -> None:
        """Heads 2 to n learn to be accepted at this step, if it is time."""
        is_time = self.state.far_heads and for_drafts_at(self.train, done)
        if is_time and not self.for_drafts and self.settings.model.has_far_heads:
            step, n = self.state.step + 1, len(self.head_weights)
            self.progress.say(f"heads 2 to {n} learn to be accepted as drafts from step {step} on, whatever their bits")
        self.for_drafts = is_time

    def _look_ahead(self) -> None:
        """Sharded layers are gathered in the order in which they will run."""
        if self.train.backward == "sequential":
            look_ahead(self.model, far_heads=self.state.far_heads)

    def _backward(self, batch: Batch) -> HeadLosses:
        """Gradients of the whole batch, in `accumulate` rounds; losses of this process's share."""
        rows, length = len(batch.octets) // self.train.accumulate, self.state.seq_len
        own_ids, own_documents = self._own(batch)
        parts = [*zip(own_ids.split(rows), own_documents.split(rows), strict=True)]
        layouts = [self.model.layout(rows, length, ids, part=self.part) for ids in batch.document_ids.split(rows)]
        done = share_done(self.train, self.state.step, self.state.elapsed_s)
        self._begin_far_heads(done)
        self._begin_drafts(done)
        share = self.train.far_rows if self.state.far_heads else 0.0
        positions, pairs = len(batch.octets) * length, sum(x.pairs for x in layouts)
        self._timed_flops += self.flops[share].of(positions, pairs) / self.part.size
        counts = self._counts(parts, share)
        weights = scheduled_weights(self.head_weights, self.train.head_schedule, done)
        rounds = []
        for i, (part, layout) in enumerate(zip(parts, layouts, strict=True)):
            sum_over_copies(self.model, now=i == len(parts) - 1)
            losses = backward(
                self.model,
                *part,
                counts=counts,
                mode=self.train.backward,
                weights=weights,
                far_rows=share,
                for_drafts=self.for_drafts,
                layout=layout,
            )
            rounds.append(losses)
        self.world.sum_gradients(self.model.parameters())
        return reduce(add, rounds)

    def _counts(self, parts: list[tuple[Tensor, Tensor]], share: float) -> Tensor | None:
        """Targets of the whole batch by head; None where its only part knows them."""
        if len(parts) * self.world.size == 1:
            return None
        return self.world.sum(reduce(add, [valid_counts(trained_targets(self.model, *x, share)) for x in parts]))

    def _own(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Ids and document ids of what this process computes, and of the bytes that its heads look ahead to."""
        self.world.check_same_rows(batch.octets, self.part)
        there, n = batch.to(self.model.device), self.settings.model.n_future
        return self.part.of_row(there.ids, n), self.part.of_row(there.document_ids, n)

    def _advance(self, batch: Batch, seconds: float) -> None:
        new_bytes = len(batch.octets) * self.state.seq_len * self.world.readers
        self.state = replace(
            self.state,
            step=self.state.step + 1,
            bytes_seen=self.state.bytes_seen + new_bytes,
            elapsed_s=self._elapsed(),
            cursor=asdict(batch.cursor),
        )
        self._timed_bytes += new_bytes
        self._timed_seconds += seconds
        self.progress.advance(self.state.step, self.state.elapsed_s)

    def _catch_up(self) -> None:
        """Wait until the steps so far are done.  UserError if one of them went wrong: nothing is written after it."""
        began = time.monotonic()
        self._check_finite()
        self._timed_seconds += time.monotonic() - began

    def _check_finite(self) -> None:
        notes = self.watch.read()
        if notes is None:
            return
        if notes.bad_step:
            self._give_up(
                f"step {notes.bad_step} has loss {notes.bad_loss} and gradient norm {notes.bad_norm}, and was not saved"
            )
        self.state = replace(self.state, grad_norm=notes.norm)

    def _check_weights(self) -> None:
        """The loss cannot tell whether the last step has spoilt them."""
        learning = [x for _, weights, state, _ in self.optimizer.states() for x in (weights, *state.values())]
        if self.world.largest(not all(bool(local(x).isfinite().all()) for x in learning)):
            self._give_up(f"the weights or their moments are not finite after step {self.state.step}, and not saved")

    def _give_up(self, what: str) -> NoReturn:
        raise UserError(
            f"{what}; {last_good(self.folder)}; start a new run with a lower train.lr or more steps of warm-up"
        )

    def _validate(self) -> None:
        """Bits per byte of the held-out rows, by the heads that have begun to learn, and a sample.

        Uncompiled: compiled code is for one shape and for gradients, and compiling again would cost more than it saves.
        """
        self._catch_up()
        self._check_weights()
        apply(self.settings, self.model, compiled=False)
        if self.valid_rows:
            began = time.monotonic()
            losses = self._total(reduce(add, map(self._evaluate, self.valid), self._no_losses()))
            self.valid_losses = losses.of(self.model.path_to_first_head) if self._heads_wait else losses
            if not math.isfinite(self.valid_losses.mean):
                self._give_up(f"validation after step {self.state.step} has loss {self.valid_losses.mean}")
            size = self.valid_rows * self.train.seq_len
            self._write("valid", self.valid_losses, size / (time.monotonic() - began))
            if self.state.seq_len == self.train.seq_len and not self._heads_wait:
                self._note_best(self.valid_losses)
        if self.sample is not None and self.train.sample_bytes:
            self.progress.say(f"sample: {self.sample(self.model).decode('utf-8', 'replace')!r}")
        apply(self.settings, self.model)

    def _evaluate(self, batch: Batch) -> HeadLosses:
        """While rows are short, with a window of their length: the model has not learned yet what lies farther back."""
        rows, window = len(batch.octets), self.settings.model.window
        if self.state.seq_len < self.train.seq_len:
            window = min(window or self.state.seq_len, self.state.seq_len)
        layout = self.model.layout(rows, self.train.seq_len, batch.document_ids, window, self.part)
        return evaluate(self.model, *self._own(batch), layout)

    def _total(self, losses: HeadLosses) -> HeadLosses:
        """Of all processes."""
        return HeadLosses(**{name: self.world.sum(values) for name, values in vars(losses).items()})

    def _no_losses(self) -> HeadLosses:
        return HeadLosses.none(self.settings.model.n_future, self.model.device)

    def _note_best(self, losses: HeadLosses) -> None:
        score, so_far = to_compare(losses, self.train), self.state.best_bpb
        if math.isfinite(score) and (so_far is None or score < so_far):
            self.state = replace(self.state, best_step=self.state.step, best_bpb=score)

    def _log_unlogged(self) -> None:
        self._catch_up()
        if self.unlogged is not None:
            flops = float(self.world.sum(torch.tensor(self._timed_flops, dtype=torch.float64))) / self.world.size
            mfu = flops / self._timed_seconds / self.peak if self.peak else None
            self._write("train", self._total(self.unlogged), self._timed_bytes / self._timed_seconds, mfu)
        self.unlogged, self._timed_bytes, self._timed_seconds, self._timed_flops = None, 0, 0.0, 0.0
        self._tell_skipped()

    def _tell_skipped(self) -> None:
        """Damaged inputs that were left out, each once."""
        for name, reason in self.batches.skipped:
            if name not in self._told:
                self._told.add(name)
                self.progress.say(f"left out: {name}: {reason}")

    def _write(
        self, split: Literal["train", "valid"], losses: HeadLosses, bytes_per_s: float, mfu: float | None = None
    ) -> None:
        is_valid, has_order_head = split == "valid", self.model.order_head is not None
        numbers = losses.mean, losses.bits_per_target[0], losses.order_loss, *losses.bits_per_byte
        loss, with_ends, order_loss, *bits = finite(numbers)
        state = self.state
        self.progress.write(
            MetricsLine(
                step=state.step,
                split=split,
                loss=loss,
                bpb_per_head=bits,
                bpb_with_ends=with_ends,
                lr=self.lr,
                grad_norm=state.grad_norm,
                bytes_seen=state.bytes_seen,
                epoch=self._epoch(),
                bytes_per_s=bytes_per_s,
                elapsed_s=time.monotonic() - self._started,
                peak_memory_bytes=peak_memory_bytes(self.model.device),
                mfu=mfu,
                accepted_per_head=finite(losses.acceptance) if is_valid and bool(losses.drafts.any()) else None,
                order_loss=order_loss if has_order_head and not is_valid else None,
            )
        )

    def _save(self) -> Path:
        self._catch_up()
        self._check_weights()
        unlogged = {} if self.unlogged is None else _pack(self._total(self.unlogged))
        whole = gathered(self.model, self.optimizer, self.world)
        if not self.world.is_first:
            return step_folder(self.folder, self.state.step)
        state = replace(self.state, unlogged=unlogged, elapsed_s=time.monotonic() - self._started)
        folder = save(self.folder, state, whole, whole, self.train.keep_checkpoints)
        if self.files and self.state.step > self.first_step:  # else the newest checkpoint is still one of the old files
            write_files(self.folder, self.files)
            self.files = ()
        return folder

    def _restore(self, change: Change) -> TrainState:
        """The newest checkpoint, with what `change` in the corpus makes of it; else the beginning."""
        folder = find_latest(self.folder)
        state = TrainState() if folder is None else load_training(folder, self.model, self.optimizer)
        self.world.check_agreed("the newest checkpoint at step", state.step)
        if change.held_out:
            state = replace(state, best_step=0, best_bpb=None)
        if change.moved and state.cursor is not None:
            state = replace(state, cursor=asdict(Cursor(**state.cursor).next_epoch()))
        return state

    def _is_finished(self) -> bool:
        if self.train.minutes:
            return self.state.elapsed_s >= 60 * self.train.minutes
        return self.state.step >= self.train.steps

    def _epoch(self) -> int:
        """Whole passes over the data."""
        return self.state.epochs_before + (self.state.cursor or {}).get("epoch", 0)

    def _is_due(self, every: int) -> bool:
        return every > 0 and self.state.step % every == 0


def to_compare(losses: HeadLosses, train: TrainConfig) -> float:
    """By what two validations of a run are compared, the less the better: head 1's bits per byte, or, where head 1 is
    frozen, the mean share of drafts that it refuses; nan where that is not known (parts of rows)."""
    if train.freeze == "none":
        return losses.bits_per_byte[0]
    accepted = [share for share in losses.acceptance if math.isfinite(share)]
    return 1 - statistics.mean(accepted) if accepted else math.nan


def _pack(losses: HeadLosses) -> dict[str, Any]:
    return {name: values.tolist() for name, values in vars(losses).items()}


def _unpack(unlogged: dict[str, Any], device: torch.device) -> HeadLosses | None:
    """Older versions do not distinguish ends of documents (there, all are taken for bytes), and have no order head."""
    if not unlogged:
        return None
    none = vars(HeadLosses.none(len(unlogged["counts"]), device))
    return HeadLosses(**{name: x.new_tensor(unlogged[name]) if name in unlogged else x for name, x in none.items()})

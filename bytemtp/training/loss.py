"""The training loss, and the backward pass whose memory does not grow with the number of heads.

    loss = sum over heads i of  (sum over valid positions p of -log P_i(id[p + 1 + i])) / (number of valid positions)

Each head learns from its own loss in full.  What head i's loss does to the parameters that head 1 needs, too (trunk,
embedding, final norm, a shared unembedding), is scaled by a weight w_i, and w_0 is 1: with w_i = 0 head 1 trains as if
it were alone, with w_i = 1 this is the sum that Gloeckle et al. 2024 train on.  Heads off head 1's path may learn from
the first rows of a batch only, so that they cost less; their counts are those of these rows.  With no row they are not
run at all, and their own parameters get no gradient.
With an order head there is one more term, which needs no weight (`bytemtp.training.order`).

Heads off head 1's path may learn to be accepted as drafts instead: then the gradient, and it alone, is that of
    1 - sum over v of min(P_0(v | ids to p + i), P_i(v | ids to p))
which is the total variation of the two laws, and the probability that speculative sampling refuses the draft (Leviathan
et al. 2023, arXiv 2211.17192, definition 3.1).  Head 1's law is taken as given.

Sequential backward (Gloeckle et al. 2024, section 2): the trunk runs once; each head in turn runs forward and backward
down to a detached copy of the trunk's output, which frees that head's activations before the next head starts; then
one backward pass through the trunk takes the summed gradient.  Heads without a layer of their own go in groups, whose
logits fit into `GROUP_BYTES`.  Chained heads (causal, anticausal, deepseek) are cut the same way at every link and
walked in reverse, so only one head's logits are alive at a time, though every link's activations are.  `mode="joint"`
is the slow, obvious twin: one graph, one backward.  Tests hold the two equal for every topology.

Shapes:  b batch, s position, d width, n future offset, g heads of a group, v vocabulary; ids are [b, s + n].
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from bytemtp.common.vocab import EOT, PADDED_VOCAB_SIZE
from bytemtp.model.attention import Layout
from bytemtp.model.context_parallel import WHOLE
from bytemtp.model.heads import Context, scale_gradient
from bytemtp.model.layers import compile_once, rms_norm, wide
from bytemtp.model.model import ByteMTP
from bytemtp.training.order import order_nats

IGNORED = -100
"""Target of a position that has none: its document has ended, or the row has."""
GROUP_BYTES = 32 * 2**20
"""Most that the float32 logits of a group of heads take; a single head may take more."""


@dataclass(frozen=True)
class HeadLosses:
    """Cross-entropy of each head, and what its drafts are worth, summed, so that several batches add up exactly.

    Targets are bytes and ends of documents.  The loss is the mean over both; bits per byte are of the bytes alone.
    """

    nats: Float[Tensor, " n"]
    """sum over valid positions, in float64"""
    counts: Int[Tensor, " n"]
    """valid positions"""
    end_nats: Float[Tensor, " n"]
    """the part of `nats` that went to ends of documents"""
    end_counts: Int[Tensor, " n"]
    """the part of `counts` whose target is the end of a document"""
    order_nats: Float[Tensor, ""]
    """of the order head, summed over head 1's valid positions, in float64; 0 without one"""
    accepted: Float[Tensor, " n"]
    """sum over `drafts` of the probability that head 1 accepts the head's draft, in float64"""
    drafts: Int[Tensor, " n"]
    """valid positions for which head 1's law of the same byte was known: none of head 1, nor where nobody asked"""

    @staticmethod
    def none(n: int, device: torch.device) -> "HeadLosses":
        """Those of no row."""
        nats = torch.zeros(n, dtype=torch.float64, device=device)
        return HeadLosses(nats, nats.long(), nats, nats.long(), nats.new_zeros(()), nats, nats.long())

    def __add__(self, other: "HeadLosses") -> "HeadLosses":
        return HeadLosses(**{name: x + getattr(other, name) for name, x in vars(self).items()})

    def of(self, heads: Sequence[int]) -> "HeadLosses":
        """Those of `heads` alone, as if the others had no target."""
        chosen = torch.tensor([i in heads for i in range(len(self.counts))], device=self.counts.device)
        names = ("nats", "counts", "end_nats", "end_counts", "accepted", "drafts")
        return replace(self, **{name: getattr(self, name).where(chosen, 0) for name in names})

    @property
    def per_head(self) -> Float[Tensor, " n"]:
        """Mean nats a target; nan for a head without any target."""
        return self.nats / self.counts

    @property
    def mean(self) -> float:
        """Mean over the heads that have a target (documents may be shorter than a head's reach); 0 if none has.

        A loss that is not finite stays so: it must not be taken for one without targets.
        """
        return float(self.mean_there)

    @property
    def mean_there(self) -> Float[Tensor, ""]:
        """`mean`, where the losses are: nobody waits for the device."""
        has_targets = self.counts > 0
        return torch.where(has_targets, self.per_head, 0.0).sum() / has_targets.sum().clamp_min(1)

    @property
    def order_loss(self) -> float:
        """Mean nats of the order head at a position; 0 without one."""
        return float(self.order_nats / self.counts[0])

    @property
    def byte_counts(self) -> Int[Tensor, " n"]:
        return self.counts - self.end_counts

    @property
    def bits_per_byte(self) -> list[float]:
        """Mean bits a byte; nan for a head without any byte to predict."""
        nats = torch.where(self.byte_counts > 0, self.nats - self.end_nats, torch.nan)
        return (nats / self.byte_counts / math.log(2)).tolist()

    @property
    def bits_per_target(self) -> list[float]:
        """Mean bits a byte or end of a document."""
        return (self.per_head / math.log(2)).tolist()

    @property
    def acceptance(self) -> list[float]:
        """Mean probability, at temperature 1 after the true bytes, that a head's draft is accepted; nan for head 1."""
        return (self.accepted / self.drafts).tolist()

    @property
    def bits_per_end(self) -> list[float]:
        """Mean bits of an end of a document; nan for a head that predicts none."""
        return (self.end_nats / self.end_counts / math.log(2)).tolist()


def targets_of(ids: Int[Tensor, "b sn"], document_ids: Int[Tensor, "b sn"], n: int) -> Int[Tensor, "n b s"]:
    """Ids i + 1 ahead of each input; IGNORED beyond the end of its document (whose EOT still counts) and on padding.

    `document_ids` count the EOTs up to and including a position, so an EOT belongs to the document that it opens as an
    input, and ends the document before it as a target: the target at q is valid for p when q - 1 is in p's document.
    """
    s = ids.shape[1] - n
    here, before = document_ids[:, None, :s], document_ids[:, :-1].unfold(1, s, 1)
    targets, itself = (x[:, 1:].unfold(1, s, 1) for x in (ids, document_ids))  # [b n s]
    valid = (before == here) & (here >= 0) & (itself >= 0)
    return targets.masked_fill(~valid, IGNORED).transpose(0, 1).contiguous()


def trained_targets(
    model: ByteMTP, ids: Int[Tensor, "b sn"], document_ids: Int[Tensor, "b sn"], far_rows: float = 1.0
) -> Int[Tensor, "n b s"]:
    """The targets that each head learns from: off head 1's path only those of the share `far_rows` of the rows."""
    n = model.config.n_future
    targets = targets_of(ids, document_ids, n)
    far = [i for i in range(n) if i not in model.path_to_first_head]
    for i in far:  # not all at once: a list of indices would have to go to the device, and be waited for
        targets[i, rows_of(len(ids), far_rows) :] = IGNORED
    return targets


def rows_of(rows: int, share: float) -> int:
    """That share of the rows, one at least; none of no share."""
    return max(1, round(share * rows)) if share else 0


def valid_counts(targets: Int[Tensor, "n b s"]) -> Int[Tensor, " n"]:
    """Valid targets of each head."""
    return (targets != IGNORED).sum((1, 2))


def draft_counts(targets: Int[Tensor, "n b s"]) -> Int[Tensor, " n"]:
    """Valid targets of each further head before whose byte the row has an input of head 1."""
    n, _, s = targets.shape
    return torch.stack([(targets[i, :, : max(0, s - i)] != IGNORED).sum() * (i > 0) for i in range(n)])


def losses_of(
    sums: Float[Tensor, "n 3"],
    targets: Int[Tensor, "n b s"],
    order: Float[Tensor, ""] | None = None,
    *,
    with_drafts: bool = True,
) -> HeadLosses:
    """sums: nats of all targets and of ends of documents, and what is accepted (`_sums`); order: the order head's."""
    nats, end_nats, accepted = sums.double().unbind(1)
    order = nats.new_zeros(()) if order is None else order.double()
    counts, ends = valid_counts(targets), (targets == EOT).sum((1, 2))
    drafts = draft_counts(targets) if with_drafts else torch.zeros_like(counts)
    return HeadLosses(nats, counts, end_nats, ends, order, accepted * (drafts > 0), drafts)


def backward(
    model: ByteMTP,
    ids: Int[Tensor, "b sn"],
    document_ids: Int[Tensor, "b sn"],
    *,
    counts: Int[Tensor, " n"] | None = None,
    mode: Literal["sequential", "joint"] = "sequential",
    weights: Sequence[float] | None = None,
    far_rows: float = 1.0,
    for_drafts: bool = False,
    layout: Layout | None = None,
) -> HeadLosses:
    """Forward and backward; gradients are added to `.grad`.  Returns the losses, detached.

    counts: when a batch is split for accumulation, the sum of all parts' `valid_counts(trained_targets(...))`: the
    gradients of the parts then sum to exactly the whole batch's gradient.
    weights: how much of each head's gradient reaches the parameters that head 1 needs, too; all of it unless given.
    far_rows: share of the rows that heads off head 1's path learn from; 0: they are not run.
    for_drafts: these heads learn to be accepted as drafts.
    layout: that of `document_ids`, if it is known; to make it from ids on a device, the device must be waited for.
    Where the ids are a part of rows (`bytemtp.model.context_parallel`) it is that of the rows.
    """
    n, rows = model.config.n_future, rows_of(len(ids), far_rows)
    with model.autocast():
        context = model.context(ids, ids.shape[1] - n, document_ids, layout=layout)
        z = model.run_trunk(context)
    targets, far = trained_targets(model, ids, document_ids, far_rows), far_context(context, rows)
    objective = Objective(
        targets,
        valid_counts(targets) if counts is None else counts,
        [1.0] * n if weights is None else weights,
        context,
        far,
        range(n) if rows else model.path_to_first_head,
        laws_of_far_rows(model, z, far) if for_drafts and rows and model.config.has_far_heads else None,
    )
    sums, order = (_backward_joint if mode == "joint" else _backward_sequential)(model, z, objective)
    return losses_of(sums, targets, order, with_drafts=objective.laws is not None)


def far_context(context: Context, rows: int) -> Context:
    """The context of the first rows alone; with none of them nobody asks for it."""
    if rows in (0, len(context.ids)):
        return context
    return replace(context, ids=context.ids[:rows], layout=context.layout.first(rows))


@torch.no_grad()
def laws_of_far_rows(model: ByteMTP, z: Float[Tensor, "b s d"], far: Context) -> Float[Tensor, "n r s v"]:
    """`verifying_laws` for the rows of a context, head 1's links run once more for them."""
    x = z[: len(far.ids)]
    with model.autocast():
        for i in model.path_to_first_head:
            x = model.link(i, x, far)
        return verifying_laws(model.logits(0, x), model.config.n_future)


def verifying_laws(logits: Float[Tensor, "r s v"], n: int) -> Float[Tensor, "n r s v"]:
    """What head 1, whose logits these are, says of the byte that each head predicts, with the bytes before it read.

    All zeros where the row ends before: no draft overlaps with that, and none has a gradient.
    """
    laws = wide(logits).softmax(-1)
    return F.pad(laws, (0, 0, 0, n - 1)).unfold(1, logits.shape[1], 1).permute(1, 0, 3, 2)  # a view


@torch.no_grad()
def evaluate(
    model: ByteMTP,
    ids: Int[Tensor, "b sn"],
    document_ids: Int[Tensor, "b sn"],
    layout: Layout | None = None,
    last: int | None = None,
) -> HeadLosses:
    """Losses without gradients, one head's logits at a time beside head 1's laws.

    layout: see `backward`.  last: that many inputs of each row count, the last ones; all unless given.
    What is accepted is not counted where the ids are a part of rows, beyond which head 1's laws are not known.
    """
    n = model.config.n_future
    with model.autocast():
        context = model.context(ids, ids.shape[1] - n, document_ids, layout=layout)
        hidden = model.heads(model.run_trunk(context), context)
    counted = slice(-(last or context.length), None)
    targets = targets_of(ids, document_ids, n)[:, :, counted]

    def logits(i: int) -> Float[Tensor, "b s v"]:
        with model.autocast():
            return model.logits(i, hidden[i][:, counted], context.ahead(i)[:, counted])

    first = logits(0)
    laws = verifying_laws(first, n) if n > 1 and context.layout.part is WHOLE else [None] * n
    sums = [_scored(logits(i) if i else first, targets[i], laws[i]) for i in range(n)]
    return losses_of(torch.stack(sums), targets, with_drafts=laws[0] is not None)


def _scored(
    logits: Float[Tensor, "b s v"], targets: Int[Tensor, "b s"], laws: Float[Tensor, "b s v"] | None
) -> Float[Tensor, "3"]:
    """In float64: nats of all targets, and of ends of documents, and what head 1's laws accept of these drafts."""
    flat, logits = targets.flatten(), wide(logits)
    nats = F.cross_entropy(logits.flatten(0, 1), flat, ignore_index=IGNORED, reduction="none").double()
    accepted = nats.new_zeros(())
    if laws is not None:
        accepted = torch.minimum(logits.softmax(-1), laws).sum(-1).double()[targets != IGNORED].sum()
    return torch.stack([nats.sum(), nats[flat == EOT].sum(), accepted])


@dataclass(frozen=True)
class Objective:
    """What all heads are trained on."""

    targets: Int[Tensor, "n b s"]
    counts: Int[Tensor, " n"]
    """valid targets that each head's summed nats are divided by"""
    weights: Sequence[float]
    """how much of each head's gradient reaches the parameters that head 1 needs, too"""
    context: Context
    far_context: Context
    """of the rows that heads off head 1's path learn from: the first ones"""
    heads: Sequence[int]
    """that learn: all, or those on head 1's path alone"""
    laws: Float[Tensor, "n r s v"] | None = None
    """of head 1, on the rows that heads off its path learn from, which these are to overlap with"""

    def learning(self, chains: Sequence[list[int]]) -> list[list[int]]:
        """Chains as far as their heads learn; head 1's path is where its chain begins."""
        return [learning for chain in chains if (learning := [i for i in chain if i in self.heads])]

    def loss(self, heads: slice, sums: Float[Tensor, "g 3"]) -> Float[Tensor, ""]:
        return (sums[:, 0] / self.counts[heads].clamp_min(1)).sum()

    def order_loss(self, nats: Float[Tensor, ""]) -> Float[Tensor, ""]:
        """The order head has something to learn wherever head 1 has."""
        return nats / self.counts[0].clamp_min(1)

    def entry_weight(self, chain: list[int], place: int, path: list[int]) -> float:
        """Factor of the gradient that leaves a head's link for what it reads.

        Links on head 1's path are shared, and there each loss is scaled where it enters (`_head_sums`).  Off the path
        the factors along a chain multiply to the head's own weight where the chain leaves the path.
        """
        i, before = chain[place], chain[place - 1] if place else None
        if i in path:
            return 1.0
        if before is None or before in path:
            return self.weights[i]
        return self.weights[i] / self.weights[before] if self.weights[before] else 1.0


def _backward_joint(model: ByteMTP, z: Tensor, objective: Objective) -> tuple[Float[Tensor, "n 3"], Float[Tensor, ""]]:
    """Sums of the heads, and nats of the order head."""
    hidden: dict[int, Tensor] = {}
    for chain in objective.learning(model.chains):
        x = z
        for place, i in enumerate(chain):
            x = hidden[i] = _run_link(model, chain, place, x, objective)
    sums = z.new_zeros(len(objective.counts), 3)
    for i, x in hidden.items():
        sums[i] = _head_sums(model, slice(i, i + 1), x, objective)[0]
    order = sum(order_nats(model, z, objective.targets[0], GROUP_BYTES), z.new_zeros(()))
    (objective.loss(slice(None), sums) + objective.order_loss(order)).backward()
    return sums.detach(), order.detach()


def _backward_sequential(
    model: ByteMTP, z: Tensor, objective: Objective
) -> tuple[Float[Tensor, "n 3"], Float[Tensor, ""]]:
    leaf = z.detach().requires_grad_(z.requires_grad)  # a frozen trunk (train.freeze) needs no gradient
    sums, order = z.new_zeros(len(objective.counts), 3), z.new_zeros(())
    with _more_to_come(model) if z.requires_grad else nullcontext():
        if model.config.topology in ("linear", "replicated"):
            for heads in groups_of(objective, first_alone=model.transitions is not None):
                sums[heads] = _loss_backward(model, heads, _run_group(model, heads, leaf, objective), objective)
        else:
            for chain in objective.learning(model.chains):
                walk = _walk_branch if model.config.topology == "branched" and 0 not in chain else _walk_chain
                walk(model, chain, leaf, objective, sums)
        for piece in order_nats(model, leaf, objective.targets[0], GROUP_BYTES):
            objective.order_loss(piece).backward()
            order += piece.detach()
    if z.requires_grad:
        z.backward(leaf.grad)
    return sums, order


@contextmanager
def _more_to_come(model: ByteMTP) -> Iterator[None]:
    """Backward passes inside are not the last, for sharded weights: what is to be gathered next stays known."""
    set_is_last: Callable[[bool], None] = getattr(model, "set_is_last_backward", lambda is_last: None)
    set_is_last(False)
    yield
    set_is_last(True)


def groups_of(objective: Objective, *, first_alone: bool) -> list[slice]:
    """Heads in groups whose logits take no more than `GROUP_BYTES`, one head at least.

    The heads of a group have one weight, learn from the same rows by the same loss, and all have transitions or none:
    head 1 may be alone.
    """
    far = objective.far_context
    size = max(1, GROUP_BYTES // (4 * PADDED_VOCAB_SIZE * len(far.ids) * far.length))
    first_alone = first_alone or far is not objective.context or objective.laws is not None
    groups = [slice(0, 1)]
    for i in objective.heads[1:]:
        last = groups[-1]
        is_alike = objective.weights[i] == objective.weights[i - 1] and (i > 1 or not first_alone)
        if is_alike and last.stop - last.start < size:
            groups[-1] = slice(last.start, i + 1)
        else:
            groups.append(slice(i, i + 1))
    return groups


def _run_group(
    model: ByteMTP, heads: slice, leaf: Float[Tensor, "b s d"], objective: Objective
) -> Float[Tensor, "r s d"]:
    """Hidden states of heads without layers: the same for all (replicated), or those of each head below each other."""
    context = objective.far_context if heads.start else objective.context
    x = scale_gradient(leaf[: len(context.ids)], objective.weights[heads.start])
    if model.config.topology == "replicated":
        return x
    with model.autocast():
        return torch.cat([model.link(i, x, context) for i in range(heads.start, heads.stop)])


def _walk_chain(model: ByteMTP, chain: list[int], leaf: Tensor, objective: Objective, sums: Tensor) -> None:
    """Forward along the chain with a cut after every link, then loss and backward link by link from its far end."""
    links: list[tuple[int, Tensor, Tensor]] = []
    x = leaf
    for place, i in enumerate(chain):
        out = _run_link(model, chain, place, x, objective)
        x = out.detach().requires_grad_(out.requires_grad)
        links.append((i, out, x))
    while links:
        i, out, x = links.pop()
        sums[i] = _loss_backward(model, slice(i, i + 1), x, objective)[0]
        if out.requires_grad:
            out.backward(x.grad)
        del out, x  # frees this link's activations before the next link's backward


def _walk_branch(model: ByteMTP, chain: list[int], leaf: Tensor, objective: Objective, sums: Tensor) -> None:
    """The same where no link but the first computes anything: heads in groups behind it."""
    out = _run_link(model, chain, 0, leaf, objective)
    x = out.detach().requires_grad_(out.requires_grad)
    for heads in groups_of(objective, first_alone=True)[1:]:
        weights = (objective.entry_weight(chain, place, model.path_to_first_head) for place in range(1, heads.start))
        weight = math.prod(weights, start=1.0)
        sums[heads] = _loss_backward(model, heads, scale_gradient(x, weight), objective)
    if out.requires_grad:
        out.backward(x.grad)


def _run_link(
    model: ByteMTP, chain: list[int], place: int, x: Tensor, objective: Objective
) -> Float[Tensor, "rows s d"]:
    """Output of a head's link, on the rows that this head learns from."""
    i, path = chain[place], model.path_to_first_head
    context = objective.context if i in path else objective.far_context
    weight = objective.entry_weight(chain, place, path)
    with model.autocast():
        return model.link(i, x[: len(context.ids)], context, weight, objective.weights[i])


def _loss_backward(
    model: ByteMTP, heads: slice, hidden: Float[Tensor, "r s d"], objective: Objective
) -> Float[Tensor, "g 3"]:
    sums = _head_sums(model, heads, hidden, objective)
    loss = objective.loss(heads, sums)
    if loss.requires_grad:
        loss.backward()
    return sums.detach()


def _head_sums(
    model: ByteMTP, heads: slice, hidden: Float[Tensor, "r s d"], objective: Objective
) -> Float[Tensor, "g 3"]:
    """Summed cross-entropy of each of `heads`, which have one weight; gradients into what is shared are scaled by it.

    The second column is the share of ends of documents, the third what head 1 accepts of drafts; both have no gradient.
    hidden: the rows of each head, below each other, or one set of rows for all heads.
    """
    weight = objective.weights[heads.start]
    if len(model.path_to_first_head) > 1:  # anticausal: head 1 reads what all heads have written
        hidden = scale_gradient(hidden, weight)
    norm = scale_gradient(model.norm.weight, weight)
    if len(model.unembed) > 1:
        unembedding = torch.stack([model.unembedding(i)[1] for i in range(heads.start, heads.stop)])
    else:
        unembedding = scale_gradient(model.unembedding(0)[1], weight)[None]
    rows = len(hidden) * len(unembedding) // (heads.stop - heads.start)
    targets = objective.targets[heads, :rows].reshape(len(unembedding), len(hidden), -1)
    bias = _transition_bias(model, heads, targets, objective.context)
    laws = None
    if objective.laws is not None and heads.start > 0:
        laws = objective.laws[heads].reshape(*targets.shape, -1)
    function = compile_once(_sums) if model.compiled else _sums
    with model.autocast():
        parts = function(hidden, norm, unembedding, model.padding, targets, bias, laws)
    return torch.stack([sums.view(heads.stop - heads.start, rows).sum(1) for sums in parts], -1)


def _transition_bias(
    model: ByteMTP, heads: slice, targets: Int[Tensor, "u r s"], context: Context
) -> Float[Tensor, "r s u v"] | None:
    """What transitions add to the logits for these targets; they are the heads' own, so no weight.

    Looked up outside of what is compiled, where the rows of its gradient would be added in no certain order on CUDA.
    """
    if model.transitions is None or heads.start == 0:
        return None
    rows = targets.shape[0] * targets.shape[1] // (heads.stop - heads.start)
    before = [context.ahead(i)[:rows] + (i - 1) * PADDED_VOCAB_SIZE for i in range(heads.start, heads.stop)]
    return F.embedding(torch.stack(before).view(targets.shape).permute(1, 2, 0), model.transitions.flatten(0, 1))


def _sums(
    hidden: Tensor,
    norm: Tensor,
    unembedding: Tensor,
    padding: Tensor,
    targets: Tensor,
    bias: Tensor | None,
    laws: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """hidden [r s d], norm [d], unembeddings [u v d], padding [v], targets [u r s], bias [r s u v], laws [u r s v] ->
    nats of all, of ends, and what is accepted, [u r]."""
    padding = padding.to(unembedding.dtype).repeat(len(unembedding))
    logits = F.linear(rms_norm(hidden, norm), unembedding.flatten(0, 1), padding).unflatten(-1, (len(unembedding), -1))
    logits = wide(logits) if bias is None else wide(logits) + bias
    ordered = targets.permute(1, 2, 0)  # [r s u], as the logits
    nats = F.cross_entropy(logits.flatten(0, 2), ordered.flatten(), ignore_index=IGNORED, reduction="none")
    nats = nats.view(ordered.shape)
    accepted = torch.zeros_like(nats)
    if laws is not None:  # in place of its own gradient that of being refused
        overlap = torch.minimum(logits.softmax(-1), laws.permute(1, 2, 0, 3)).sum(-1)
        accepted = overlap.where(ordered != IGNORED, 0)
        nats = nats.detach() + (accepted.detach() - accepted)
    return nats.sum(1).T, nats.detach().where(ordered == EOT, 0).sum(1).T, accepted.detach().sum(1).T

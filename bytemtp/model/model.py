"""ByteMTP: a shared trunk and n heads; head i predicts the byte i + 1 positions ahead.

    ids -> embed -> trunk (blocks) -> z -> link 0..n-1 -> norm -> unembed (+ transitions) -> logits [n b s v]

In every topology the trunk with head 1's path is exactly a Llama.

Try:  python -c "import bytemtp; print(bytemtp.ByteMTP(bytemtp.PRESETS['nano'].model))"
Shapes:  b batch, s position, d width, n future offset (0 = next byte), v vocabulary (padded to 264).
"""

from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import wraps
from typing import TypeVar
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from bytemtp.common.errors import UserError
from bytemtp.common.runtime import Choice
from bytemtp.common.settings import ModelConfig
from bytemtp.common.shards import split_like
from bytemtp.common.vocab import PADDED_VOCAB_SIZE, VOCAB_SIZE
from bytemtp.model.attention import Layout, pick_attention
from bytemtp.model.context_parallel import WHOLE, Part
from bytemtp.model.heads import Context, DeepSeekModule, chains_for, links_for, scale_gradient
from bytemtp.model.layers import Block, RMSNorm, rms_norm, rope_at

T = TypeVar("T")


class ByteMTP(nn.Module):
    """Byte-level transformer with `config.n_future` heads.

    Weights are drawn from `seed` alone; with None they are not, since others will take their place.
    """

    padding: Tensor

    def __init__(self, config: ModelConfig, seed: int | None = 0) -> None:
        super().__init__()
        self.config = config
        self.embed = nn.Embedding(PADDED_VOCAB_SIZE, config.dim)
        self.trunk = nn.ModuleList(Block(config) for _ in range(config.trunk_layers))
        self.links = nn.ModuleList(links_for(config))
        self.norm = RMSNorm(config.dim)
        unembeddings = config.n_future if config.topology in ("replicated", "branched") else 1
        self.unembed = nn.ModuleList(nn.Linear(config.dim, PADDED_VOCAB_SIZE, bias=False) for _ in range(unembeddings))
        shape = config.tables, PADDED_VOCAB_SIZE, PADDED_VOCAB_SIZE
        self.transitions = nn.Parameter(torch.zeros(shape)) if config.tables else None
        """of heads 1 to n - 1, by the id before the one predicted: see `logits`"""
        self.order_head = nn.Linear(config.dim, PADDED_VOCAB_SIZE, bias=False) if config.order_head else None
        """for training alone (`bytemtp.training.order`); drawn last, so that it changes no other weight"""
        self.register_buffer("padding", torch.zeros(PADDED_VOCAB_SIZE), persistent=False)
        self.chains = chains_for(config)
        self.dtype, self.compiled, self.checkpointing = torch.float32, False, False
        self.trained_length = 0
        """positions of the rows that it was trained on, beyond which decoding does not look back; 0 if not known"""
        init_weights(self, seed)

    def use(
        self,
        *,
        attention: str = "auto",
        dtype: torch.dtype = torch.float32,
        compiled: bool = False,
        checkpointing: bool = False,
    ) -> Choice:
        """Set how the model is run, not what it is: nothing of this is saved.  Returns the attention backend chosen."""
        arithmetic = self.embed.weight.dtype if dtype == torch.float32 else dtype
        backend = pick_attention(attention, self.device, self.config, arithmetic)
        self.dtype, self.compiled, self.checkpointing = dtype, compiled, checkpointing
        for module in self.modules():
            if isinstance(module, Block):
                module.attention_backend, module.compiled = backend.value, compiled
        return backend

    @property
    def reach(self) -> int:
        """Ids that one sees in decoding, itself included: the window, but no more than it was trained on; 0 is all."""
        return min((limit for limit in (self.config.window, self.trained_length) if limit), default=0)

    @property
    def path_to_first_head(self) -> list[int]:
        """Heads on the way to head 1's logits, in order of computation."""
        chain = next(chain for chain in self.chains if 0 in chain)
        return chain[: chain.index(0) + 1]

    def first_modules(self) -> list[nn.Module]:
        """All modules that head 1's logits come from, in order of computation; the other heads' own are left out."""
        links = [self.links[i] for i in self.path_to_first_head]
        return [self.embed, *self.trunk, *links, self.norm, self.unembed[0]]

    def first_blocks(self) -> list[Block]:
        """The layers among them, in order of computation; heads that are `linear` or `replicated` have none."""
        return [module for module in self.first_modules() if isinstance(module, Block)]

    @property
    def device(self) -> torch.device:
        return self.embed.weight.device

    def autocast(self) -> AbstractContextManager[None]:
        """Matrix products in `use(dtype=...)`; weights, norms and residual sums stay in the parameters' dtype."""
        if self.dtype == torch.int8:
            raise UserError("int8 is for decoding and `evaluate bpb`; choose float32 or bfloat16")
        return torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32)

    def num_parameters(self) -> int:
        return sum(p.numel() for p in self.parameters())

    def state_of_weights(self) -> list[tuple[int, int]]:
        """Changes whenever a parameter is replaced or written to: whatever was made from the weights is then stale.

        PyTorch does not count what is written through `.data`: write under `torch.no_grad()` instead.  Nor does it for
        weights that were made in `torch.inference_mode()`, which must then stay as they are.
        """
        return [(x.data_ptr(), 0 if x.is_inference() else x._version) for x in self.parameters()]

    def forward(
        self, ids: Int[Tensor, "b s"], document_ids: Int[Tensor, "b s"] | None = None
    ) -> Float[Tensor, "n b s v"]:
        """Logits of all heads; index 0 predicts the next byte.  Ids 257-263 have logit -inf.

        `document_ids` (any ids that change where a document starts) keep attention inside documents.  A `deepseek`
        head i also reads the i ids after each position, a head i > 0 with `transitions` the i-th of them; EOT stands
        in for those beyond the end.
        """
        with self.autocast():
            context = self.context(ids, ids.shape[1], document_ids)
            hidden = self.heads(self.run_trunk(context), context)
            return torch.stack([self.logits(i, x, context.ahead(i)) for i, x in enumerate(hidden)])

    def context(
        self,
        ids: Tensor,
        length: int,
        document_ids: Tensor | None = None,
        window: int | None = None,
        layout: Layout | None = None,
    ) -> Context:
        """For the first `length` of `ids`; the rest is only read ahead, by `deepseek` heads and for `transitions`.

        window: in place of `config.window`.
        layout: in place of `document_ids` and `window`; the ids may be a part of its rows.
        """
        config, weight = self.config, self.embed.weight
        layout = layout or self.layout(len(ids), length, document_ids, window)
        # Inside an autocast region the rotation belongs to the float32 side, like norms: one rounding less.
        positions = layout.part.index * length + torch.arange(length, device=weight.device)
        rope = rope_at(positions, config.head_dim, config.rope_theta, weight.dtype)
        return Context(ids, length, rope, layout)

    def layout(
        self,
        rows: int,
        length: int,
        document_ids: Tensor | None = None,
        window: int | None = None,
        part: Part = WHOLE,
    ) -> Layout:
        """Who sees whom in the first `length` positions.  Ids on the host spare the wait for the device.

        part: of these positions, which the process computes; the others are other processes'.
        """
        here = None if document_ids is None else document_ids[:, :length]
        return Layout.of(rows, length, here, self.config.window if window is None else window, self.device, part)

    def run_trunk(self, context: Context) -> Float[Tensor, "b s d"]:
        x = self.embed(context.ids[:, : context.length])
        for block in self.trunk:
            if self.checkpointing and torch.is_grad_enabled():
                x = checkpoint(block, x, context.rope, context.layout, use_reentrant=False, preserve_rng_state=False)
            else:
                x = block(x, context.rope, context.layout)
        return x

    def first_hidden(self, ids: Int[Tensor, "b s"], window: int) -> Float[Tensor, "b s d"]:
        """What head 1 hands to the norm and unembedding, each id seeing `window` ids back; no other head is run."""
        context = self.context(ids, ids.shape[1], window=window)
        x = self.run_trunk(context)
        for i in self.path_to_first_head:
            x = self.link(i, x, context)
        return x

    def heads(self, z: Float[Tensor, "b s d"], context: Context) -> list[Float[Tensor, "b s d"]]:
        """What each head hands to the norm and unembedding, by future offset."""
        hidden: dict[int, Tensor] = {}
        for chain in self.chains:
            x = z
            for i in chain:
                x = hidden[i] = self.link(i, x, context)
        return [hidden[i] for i in range(self.config.n_future)]

    def link(
        self, i: int, x: Float[Tensor, "b s d"], context: Context, weight: float = 1.0, embed_weight: float = 1.0
    ) -> Float[Tensor, "b s d"]:
        """Head i's own computation on `x`, the output of whatever comes before it in its chain.

        weight, embed_weight: factors of the gradient that leaves the head for `x` and for the embedding of the ids
        ahead.
        """
        link, x = self.links[i], scale_gradient(x, weight)
        if isinstance(link, DeepSeekModule):
            return link(x, scale_gradient(self.embed(context.ahead(i)), embed_weight), context)
        if isinstance(link, Block):
            return link(x, context.rope, context.layout)
        return link(x)

    def logits(
        self, i: int, x: Float[Tensor, "*b d"], before: Int[Tensor, "*b"] | None = None
    ) -> Float[Tensor, "*b v"]:
        """Of head i, whose link gave x.  before: the id just before the one predicted; without it, or if there are no
        `transitions`, these are the logits without them."""
        logits = unembed(x, *self.unembedding(i))
        if self.transitions is None or before is None or i == 0:
            return logits
        return logits + F.embedding(before, self.transitions[i - 1]).to(logits.dtype)

    def unembedding(self, i: int) -> tuple[Tensor, Tensor, Tensor]:
        """Head i's final norm [d], unembedding [v d] and the bias [v] that shuts the padding out: see `unembed`."""
        unembed = self.unembed[i if len(self.unembed) > 1 else 0]
        assert isinstance(unembed, nn.Linear)
        return self.norm.weight, unembed.weight, self.padding.to(unembed.weight.dtype)


def cached_by_weights(make: Callable[[ByteMTP], T]) -> Callable[[ByteMTP], T]:
    """Keeps what is made from a model as long as the model, and makes it anew when the weights have changed."""
    kept: WeakKeyDictionary[ByteMTP, tuple[list[tuple[int, int]], T]] = WeakKeyDictionary()

    @wraps(make)
    def of(model: ByteMTP) -> T:
        state = model.state_of_weights()
        if model not in kept or kept[model][0] != state:
            kept[model] = state, make(model)
        return kept[model][1]

    return of


def unembed(x: Tensor, norm: Tensor, unembedding: Tensor, padding: Tensor) -> Float[Tensor, "*b v"]:
    """The padding's -inf goes in as a bias: the matrix product adds it for nothing, and 0 changes no real logit."""
    return F.linear(rms_norm(x, norm), unembedding, padding)


@torch.no_grad()
def init_weights(model: ByteMTP, seed: int | None) -> None:
    """Truncated normal with std 1/sqrt(fan-in); matrices that write to the residual stream are scaled by 1/sqrt(2 L).

    The fan-in scale is LeCun 1998's, cut at three deviations as in Meta's Lingua; the depth scale is GPT-2's (Radford
    et al. 2019, section 2.3): the residual stream, a sum of 2 L terms at most, keeps a variance near one.
    """
    model.padding.zero_()[VOCAB_SIZE:] = -torch.inf
    if seed is None:
        return
    generator = torch.Generator().manual_seed(seed)
    depth = (2 * model.config.layers) ** -0.5
    for name, parameter in model.named_parameters():
        if parameter.dim() < 2 or parameter is model.transitions:
            parameter.fill_(0.0 if parameter is model.transitions else 1.0)  # or scales of norms
            continue
        std = parameter.shape[1] ** -0.5
        if name.endswith(("attention_out.weight", "ffn_out.weight")):
            std *= depth
        drawn = torch.empty(parameter.shape, dtype=parameter.dtype)  # whole and on the host, whoever has which rows
        nn.init.trunc_normal_(drawn, std=std, a=-3 * std, b=3 * std, generator=generator)
        parameter.copy_(split_like(drawn, parameter))

"""Draws by tensor operations, for passes that the device decides by itself: the twins of `decoding/sampling.py`.

Random numbers are made of a row's key and a counter, so that a recorded pass, which has no state, gets new ones each
time.

    u = uniforms(keys, start, 2)                                 # [b 2]
    stay, id_ = verify_chains(p, ids, q, u)                      # [b], [b]

Shapes:  b rows, c drafts of a chain, c1 = c + 1 places behind them, v vocabulary, n numbers.
"""

import torch
from jaxtyping import Float32, Float64, Int64
from torch import Tensor

ODD = -0x61C8864680B583EB
"""2^64 divided by the golden ratio, as a signed number."""
MIXERS = (30, -0x40A7B892E31B1A47), (27, -0x6B2FB644ECCEEE15), (31, 1)


def uniforms(keys: Int64[Tensor, " b"], counter: Int64[Tensor, " b"], count: int) -> Float64[Tensor, "b n"]:
    """Numbers in [0, 1) that hang on key and counter alone (SplitMix64, Steele et al. 2014, figure 16)."""
    number = torch.arange(count, device=keys.device)
    x = keys[:, None] + (counter[:, None] * count + number + 1) * ODD
    for shift, factor in MIXERS:
        x = (x ^ _shifted(x, shift)) * factor
    return _shifted(x, 11).double() * 2.0**-53


def _shifted(x: Int64[Tensor, "b n"], by: int) -> Int64[Tensor, "b n"]:
    """To the right, as if there were no sign."""
    return (x >> by) & ((1 << (64 - by)) - 1)


def law(logits: Float32[Tensor, "*b v"], temperature: Float64[Tensor, ""]) -> Float64[Tensor, "*b v"]:
    """`sampling.softmax`: a temperature near 0 makes no odds of infinity."""
    wide = logits.double()
    return ((wide - wide.amax(-1, keepdim=True)) / temperature).softmax(-1)


def draw(laws: Float64[Tensor, "b v"], uniform: Float64[Tensor, " b"]) -> Int64[Tensor, " b"]:
    """The ids at `uniform` of the cumulative laws, which need not be normalised; never one of probability 0."""
    cumulative = laws.cumsum(-1)
    index = torch.searchsorted(cumulative, (uniform * cumulative[:, -1])[:, None], right=True)[:, 0]
    last = (cumulative < cumulative[:, -1:]).sum(-1)  # a product may be rounded up to the sum
    return index.minimum(last)


def verify_chains(
    p: Float64[Tensor, "b c1 v"],
    ids: Int64[Tensor, "b c"],
    q: Float64[Tensor, "b c v"],
    uniform: Float64[Tensor, "b 2"],
) -> tuple[Int64[Tensor, " b"], Int64[Tensor, " b"]]:
    """`sampling.verify_chain` of every row: how many drafts stay, and the id after them."""
    lengths, rests = chain_laws(p, ids, q)
    stay = draw(lengths, uniform[:, 0])
    rest = rests.gather(1, stay[:, None, None].expand(-1, 1, rests.shape[2]))[:, 0]
    return stay, draw(rest, uniform[:, 1])


def chain_laws(
    p: Float64[Tensor, "b c1 v"], ids: Int64[Tensor, "b c"], q: Float64[Tensor, "b c v"]
) -> tuple[Float64[Tensor, "b c1"], Float64[Tensor, "b c1 v"]]:
    """`sampling.chain_laws` of every row."""
    kept, drawn = (law.gather(2, ids[..., None])[..., 0] for law in (p[:, :-1], q))
    reached = [torch.ones_like(p[:, 0, 0])]
    for i in range(ids.shape[1]):
        share = kept[:, i] * reached[-1]
        reached.append(torch.where(share < drawn[:, i], share / drawn[:, i], 1.0))
    at_least = torch.stack(reached, 1)
    rests = (at_least[..., None] * p - torch.cat([q, torch.zeros_like(p[:, :1])], 1)).clamp_min(0)
    totals = rests.sum(-1)
    ends = totals + (1 - at_least)
    h = torch.where(ends > 0, totals / ends, 1.0)
    rests = torch.where(totals[..., None] == 0, p, rests)
    later = torch.cat([(1 - h[:, 1:]).flip(1).cumprod(1).flip(1), torch.ones_like(h[:, :1])], 1)
    return h * later, rests

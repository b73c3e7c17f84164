"""What the trunk's output holds: linear maps from it to the bytes ahead, fitted anew, so that no head can help.

Shapes:  b row, s position, r place (b s) whose next AHEAD ids are in its document, n bytes ahead (0 is next),
         f feature, c id.
"""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

import bytemtp
from bytemtp import ByteMTP
from bytemtp.common.errors import UserError
from bytemtp.common.vocab import VOCAB_SIZE
from bytemtp.training.loss import IGNORED, targets_of
from experiments.future_lens.probes import features, fit

AHEAD = 4
"""As many bytes as the recipe's models have heads."""
LENGTH, BATCH, SEED = 256, 8, 0


def bits(model: ByteMTP, training: str, heldout: str, places: int) -> list[float]:
    """By distance, mean bits of the byte that many ahead, at so many places of the held-out files.

    The maps are fitted at as many places of the training files.
    """
    states, targets = read(model, training, places)
    weights = fit(features(states[:, None]), targets, VOCAB_SIZE)
    states, targets = read(model, heldout, places)
    return surprisal(features(states[:, None])[0], weights[0], targets)


@torch.no_grad()
def read(model: ByteMTP, path: str, places: int) -> tuple[Float[Tensor, "r d"], Int[Tensor, "r n"]]:
    """States behind the trunk's last layer, and the ids that come.  UserError if there are too few."""
    states, targets, found = [], [], 0
    with bytemtp.stream(path, LENGTH, BATCH, SEED, n_future=AHEAD) as batches:
        for batch in batches:
            ids, documents = (part.to(model.device) for part in (batch.ids, batch.document_ids))
            z = model.run_trunk(model.context(ids, LENGTH, documents))
            ahead = targets_of(ids, documents, AHEAD).permute(1, 2, 0)
            known = (ahead != IGNORED).all(-1)
            states.append(z[known])
            targets.append(ahead[known])
            found += len(states[-1])
            if found >= places:
                return torch.cat(states)[:places], torch.cat(targets)[:places]
    raise UserError(f"{path} has {found} places with {AHEAD} bytes behind them; {places} are needed")


def surprisal(x: Float[Tensor, "r f"], weights: Float[Tensor, "f n c"], targets: Int[Tensor, "r n"]) -> list[float]:
    logits = torch.einsum("rf,fnc->rnc", x, weights)
    nats = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none").view_as(targets)
    return [each / math.log(2) for each in nats.double().mean(0).tolist()]

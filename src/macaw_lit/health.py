"""Whether soft tokens say anything: how even the attention is, how alike different inputs come out, what learns."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from macaw_lit.aligners.base import Aligner
from macaw_lit.model import Macaw, Modality
from macaw_lit.types import Batch

Health = dict[str, float]
"""Figure → value; a figure that cannot be told here is left out."""

COLLAPSED = 0.99  # cosine between the tokens of different inputs, above which a model can hardly tell them apart


@torch.no_grad()
def alignment_health(aligner: Aligner, features: Float[Tensor, "n s e"], table: Float[Tensor, "v d"]) -> Health:
    """What an aligner makes of the features of different items.

    Returns:
        entropy: of the attention over the table, as a share of the logarithm of its entries; mean over tokens and
            heads. At 1 every token is the mean of all embeddings. Only of aligners that attend to the table, and not
            under ZeRO-3.
        cosine: between the tokens that different items have at the same place; mean over pairs and places. At 1 all
            inputs are the same to the language model. Only of two items and more.
        norm_ratio: root mean square of the tokens by that of the embeddings. Only of one item and more.
    """
    return _health(aligner, features, table, aligner(features, table))


@contextmanager
def watched(model: Macaw) -> Iterator[dict[str, Health]]:
    """Take the health of every aligner's call within the block, by kind, without a call of its own."""
    found: dict[str, Health] = {}

    def take(kind: str, aligner: Aligner, inputs: tuple[Tensor, Tensor], tokens: Tensor) -> None:
        if len(tokens):
            with torch.no_grad():
                found[kind] = _health(aligner, *inputs, tokens)

    handles = [
        modality.aligner.register_forward_hook(partial(take, kind)) for kind, modality in _modalities(model).items()
    ]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def gradient_shares(model: Macaw) -> dict[str, Health]:
    """After a backward pass, by kind: the norm of the gradient in its aligner and in its encoder, by that of the model.

    Kinds that share an encoder share its figure. Empty if nothing has a gradient.
    """
    whole = gradient_norm(model)
    if whole is None or not whole:
        return {}

    def share(part: nn.Module) -> float:
        norm = gradient_norm(part)
        return 0.0 if norm is None else float(norm / whole)

    return {
        kind: {
            "aligner_gradient": share(modality.aligner),
            "encoder_gradient": share(model.encoders[modality.encoder]),
        }
        for kind, modality in _modalities(model).items()
    }


def model_health(model: Macaw, batch: Batch) -> dict[str, Health]:
    """All figures of a model on one batch with labels, for the kinds it holds; the model is left without gradients."""
    model.zero_grad()
    with watched(model) as found:
        nll = model(batch).nll
    nll.backward()
    shares = gradient_shares(model)
    model.zero_grad()
    return {kind: health | shares.get(kind, {}) for kind, health in found.items()}


def _health(aligner: Aligner, features: Tensor, table: Tensor, tokens: Tensor) -> Health:
    health: Health = {}
    if not len(tokens):
        return health
    # One item at a time: V weights for each of its tokens and heads are much to hold. None where ZeRO-3 would gather
    # the aligner's own weights again, in the processes alone that have such items: the others would never answer.
    again = not any(_by_zero3(weight) for weight in aligner.parameters())
    weights = [aligner.weights(item[None], table) for item in features] if again else []
    shares = [_entropy(part) / math.log(part.shape[-1]) for part in weights if part is not None]
    if shares:
        health["entropy"] = sum(shares) / len(shares)
    if len(tokens) > 1:
        health["cosine"] = _cosine(tokens)
    health["norm_ratio"] = float(_rms(tokens) / _rms(table))
    return health


def _entropy(weights: Float[Tensor, "... words"]) -> float:
    return float(torch.special.entr(weights.float()).sum(-1).mean())


def _cosine(tokens: Float[Tensor, "n k d"]) -> float:
    """Mean over all pairs i ≠ j and all places: |Σ u|² of N unit vectors is N plus the cosines of N(N - 1) pairs."""
    units = nn.functional.normalize(tokens.double(), dim=-1, eps=1e-300)
    items = len(units)
    return float((units.sum(0).square().sum(-1) - items).mean() / (items * (items - 1)))


def _rms(tensor: Tensor) -> Tensor:
    return torch.linalg.vector_norm(tensor, dtype=torch.float32) / tensor.numel() ** 0.5


def gradient_norm(part: nn.Module) -> Tensor | None:
    """The L2 norm of the gradient in a part, whole where a strategy deals it out; None where there is none.

    Every process must call it together. ZeRO's is that of the scaled loss, where the loss is scaled.
    """
    norms = []
    for weight in part.parameters():
        if (gradient := _gradient(weight)) is not None:
            norm = torch.linalg.vector_norm(gradient.float())
            norms.append(norm.full_tensor() if isinstance(norm, DTensor) else norm)
    return torch.linalg.vector_norm(torch.stack(norms)) if norms else None


def _gradient(weight: nn.Parameter) -> Tensor | None:
    if not weight.requires_grad or not (_by_zero3(weight) or hasattr(weight, "_hp_mapping")):
        return weight.grad
    from deepspeed.utils import safe_get_full_grad  # takes seconds, and is an extra

    gradient: Tensor | None = safe_get_full_grad(weight)
    return gradient


def _by_zero3(weight: nn.Parameter) -> bool:
    return hasattr(weight, "ds_id")


def _modalities(model: Macaw) -> dict[str, Modality]:
    return {kind: modality for kind, modality in model.modalities.items() if isinstance(modality, Modality)}

"""Losses of a token critic: one for its BIOE tags, one for the words by which it names what it marks.

Positions whose label is `IGNORED` have no part in a loss; where all are ignored it is zero, with a gradient of zeros.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.nn import functional

IGNORED = -100
GAMMA = 2.0


def tag_loss(logits: Tensor, labels: Tensor, kind: str = "focal", weights: Sequence[float] | None = None) -> Tensor:
    """The loss of the tags.

    Cross-entropy is the mean weighted by class. Focal loss (arXiv 1708.02002) is the mean over the labelled positions of
    `weight * (1 - p) ** 2 * -log p`: a class's weight scales its loss and leaves p alone.

    Args:
        logits: [..., tags].
        labels: [...] indices of tags, or `IGNORED`.
        kind: "focal" or "ce".
        weights: one a tag; None: all are 1.
    """
    known = labels != IGNORED
    logits, labels = logits[known].float(), labels[known]
    if not len(labels):
        return logits.sum()
    weight = logits.new_tensor(weights) if weights is not None else None
    if kind == "ce":
        return functional.cross_entropy(logits, labels, weight=weight)
    surprise = functional.cross_entropy(logits, labels, reduction="none")
    focused = (1 - torch.exp(-surprise)) ** GAMMA * surprise
    return (focused if weight is None else weight[labels] * focused).mean()


def reference_tag_loss(logits: Tensor, labels: Tensor, kind: str = "focal", weights: Sequence[float] | None = None) -> Tensor:
    """The loss of the tags as the released training code has it, to go on from or compare with what it trained.

    Its focal loss puts the class weight into the p of `(1 - p) ** 2`, and ignored positions count as zeros in the mean.
    Where all are ignored its cross-entropy is NaN. Arguments as in `tag_loss`.
    """
    logits, labels = logits.flatten(0, -2).float(), labels.flatten()
    weight = logits.new_tensor(weights) if weights is not None else None
    if kind == "ce":
        return functional.cross_entropy(logits, labels, weight=weight, ignore_index=IGNORED)
    surprise = functional.cross_entropy(logits, labels, weight=weight, ignore_index=IGNORED, reduction="none")
    return ((1 - torch.exp(-surprise)) ** GAMMA * surprise).mean()


def language_loss(hidden: Tensor, head: Tensor, labels: Tensor, weights: Mapping[int, float] | None = None) -> Tensor:
    """Cross-entropy of the token named at each position, at that very position: nothing is shifted.

    Logits of labelled positions alone are computed.

    Args:
        hidden: [..., hidden size] the last hidden states.
        head: [vocabulary, hidden size] the weights of the LM head.
        labels: [...] token ids, or `IGNORED`.
        weights: of single tokens, by id; others weigh 1. The mean is weighted by them.
    """
    known = labels != IGNORED
    logits = functional.linear(hidden[known], head).float()
    if not len(logits):
        return logits.sum()
    weight = None
    if weights:
        weight = logits.new_ones(len(head))
        weight[list(weights)] = logits.new_tensor(list(weights.values()))
    return functional.cross_entropy(logits, labels[known], weight=weight)

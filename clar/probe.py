"""Evaluation of frozen representations: a linear classifier and nearest neighbours.

The linear probe is multinomial logistic regression, a convex problem, so it is solved rather than trained: L-BFGS in
float64 over a path of L2 penalties, from strong to weak, each starting at the last one's solution. The penalty is
chosen on valid; test is looked at once. (The released code trains an MLP online, one pass an epoch, and its validation
set is its test set.)

N clips, H dimensions, C classes.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

L2_PATH = (10.0, 1.0, 0.1, 1e-2, 1e-3, 1e-4)
"""Penalties tried, strongest first. Loss: mean cross-entropy + l2 / 2 * |weights|^2 on standardised features."""

Split = tuple[Tensor, Tensor]
"""Representations (N, H), any float type, and labels (N,) int64."""


class ProbeResult(NamedTuple):
    """Shares of correctly classified clips, 0 to 1."""

    top1: float
    top5: float
    l2: float
    valid_top1: float


class Probe(NamedTuple):
    """A fitted linear classifier with the penalty that valid preferred."""

    mean_H: Tensor
    scale_H: Tensor
    weight_CH: Tensor
    bias_C: Tensor
    l2: float
    valid_top1: float

    def logits(self, features_NH: Tensor) -> Tensor:
        """(N, C) of representations (N, H)."""
        return (features_NH.double() - self.mean_H) / self.scale_H @ self.weight_CH.T + self.bias_C

    def accuracy(self, split: Split, top: int = 1) -> float:
        """Share of the split's clips whose class is among the `top` likeliest."""
        features_NH, labels_N = split
        logits_NC = self.logits(features_NH)
        best = logits_NC.topk(min(top, logits_NC.shape[1]), dim=1).indices
        return (best == labels_N[:, None]).any(dim=1).double().mean().item()


def linear(
    train: Split, valid: Split, test: Split, classes: int | None = None, l2_path: Sequence[float] = L2_PATH
) -> ProbeResult:
    """Fit on train, choose the penalty on valid, score once on test.

    Args:
        train: representations and labels to fit on.
        valid: to choose the penalty on.
        test: to score on.
        classes: C; by default the largest label of train + 1.
        l2_path: penalties, strongest first.

    Raises:
        ValueError: a split is empty, or its representations are not finite.
    """
    probe = fit(train, valid, classes, l2_path)
    return ProbeResult(probe.accuracy(test), probe.accuracy(test, top=5), probe.l2, probe.valid_top1)


def fit(train: Split, valid: Split, classes: int | None = None, l2_path: Sequence[float] = L2_PATH) -> Probe:
    """The first half of `linear`: everything but the look at test. Ties on valid go to the stronger penalty."""
    for name, (features_NH, labels_N) in (("train", train), ("valid", valid)):
        if len(labels_N) == 0 or len(labels_N) != len(features_NH):
            raise ValueError(f"probe: {name} has {len(features_NH)} representations and {len(labels_N)} labels")
        if not features_NH.isfinite().all():
            raise ValueError(f"probe: representations of {name} are not finite")
    features_NH, labels_N = train[0].double(), train[1]
    mean_H = features_NH.mean(dim=0)
    scale_H = features_NH.std(dim=0, correction=0)
    # A dimension that never changes carries nothing; dividing by its zero would carry noise.
    scale_H = torch.where(scale_H > 1e-9 * (1 + mean_H.abs()), scale_H, 1.0)
    inputs_NH = (features_NH - mean_H) / scale_H
    count = classes or int(labels_N.max()) + 1
    weight_CH = inputs_NH.new_zeros(count, inputs_NH.shape[1])
    bias_C = inputs_NH.new_zeros(count)
    best: Probe | None = None
    for l2 in l2_path:
        weight_CH, bias_C = _solve(inputs_NH, labels_N, weight_CH, bias_C, l2)
        candidate = Probe(mean_H, scale_H, weight_CH, bias_C, l2, valid_top1=0.0)
        candidate = candidate._replace(valid_top1=candidate.accuracy(valid))
        if best is None or candidate.valid_top1 > best.valid_top1:
            best = candidate
    if best is None:
        raise ValueError("probe: l2_path is empty")
    return best


def _solve(inputs_NH: Tensor, labels_N: Tensor, weight_CH: Tensor, bias_C: Tensor, l2: float) -> tuple[Tensor, Tensor]:
    """The minimum for one penalty, from the given start."""
    weight_CH = weight_CH.clone().requires_grad_()
    bias_C = bias_C.clone().requires_grad_()
    solver = torch.optim.LBFGS(
        [weight_CH, bias_C], max_iter=300, history_size=10, tolerance_grad=1e-5, line_search_fn="strong_wolfe"
    )

    def loss() -> Tensor:
        solver.zero_grad()
        value = F.cross_entropy(inputs_NH @ weight_CH.T + bias_C, labels_N) + l2 / 2 * weight_CH.square().sum()
        value.backward()
        return value

    with torch.enable_grad():
        solver.step(loss)
    return weight_CH.detach(), bias_C.detach()


def nearest_neighbours(train: Split, test: Split, neighbours: int = 10) -> float:
    """Share of test clips whose class most of their nearest training clips have, by cosine similarity.

    A tie between classes goes to the one whose neighbours are nearer in sum.
    """
    train_NH, test_MH = (F.normalize(split[0].double(), dim=1) for split in (train, test))
    labels_N = train[1]
    classes = int(torch.cat([labels_N, test[1]]).max()) + 1
    correct = 0
    # 1,024 rows at a time bound the similarity matrix: NSynth's test set against its training set has 10^9 entries.
    for rows_MH, wanted_M in zip(test_MH.split(1024), test[1].split(1024), strict=True):
        similarity, index = (rows_MH @ train_NH.T).topk(min(neighbours, len(labels_N)), dim=1)
        # Similarities lie in [-1, 1]: scaled to less than one vote in sum, they decide only between equal counts.
        votes = 1 + (similarity + 1) / (4 * neighbours)
        score = votes.new_zeros(len(rows_MH), classes).scatter_add_(1, labels_N[index], votes)
        correct += int((score.argmax(dim=1) == wanted_M).sum())
    return correct / len(test[1])

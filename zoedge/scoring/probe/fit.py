"""This module fits a classifier in closed form: a multinomial logistic regression whose weights are a low-rank matrix.

The last block adds W_down m to the hidden states h, where m [I] is the input of its last Linear. A term B R A m added to it
moves the C option logits of example b by moves_b R phi_b: phi_b = A m_b are k features, and moves_b [C, r] is the derivative
of the logits along the r columns of B. So the loss is convex in R, and Newton's method finds its minimum without another
pass.

`whiten` chooses A: one feature that is 1 on average, which takes up the bias for some labels, and the k - 1 principal
components of the rest, each with variance 1 (whitened activations as a basis: EVA, arXiv 2410.07170). `choose_fit` chooses
k and the ridge by cross-validation, because k = I would fit a few hundred rows exactly and know nothing.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, one_hot

FEATURE_COUNTS = (4, 8, 16, 32, 64, 128, 256)
SAFE_FEATURES = 16  # preferred wherever its loss is within one standard error of the best
RIDGES = (0.003, 0.01, 0.03, 0.1, 0.3, 1.0)
FIRST_RIDGE = 0.03  # the one by which the number of features is chosen
BIAS_RIDGE = 1e-4  # of the feature that is 1 on average: a label's bias is no overfitting
FOLDS = 5
MIN_ROWS, MIN_ROWS_OF_A_LABEL = 16, 2  # with fewer, the bias alone is taken off
MAX_NEWTON_STEPS = 25
SMALLEST_GAIN = 1e-6  # of the loss, in nats: a step that gains less is the last


@dataclass(frozen=True)
class Design:
    """A linear model of the option logits of N examples: offset + moves R phi, for any R [r, k].

    Attributes:
        phi: the features, [N, k] float64.
        moves: what a unit of each of the r columns adds to the logits, [N, C, r].
        offset: the logits at R = 0, [N, C].
        labels: the right options, [N].
    """

    phi: Tensor
    moves: Tensor
    offset: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def take_rows(self, chosen: Tensor) -> Design:
        """Return the design of some examples, by a mask or by their numbers."""
        return Design(self.phi[chosen], self.moves[chosen], self.offset[chosen], self.labels[chosen])

    def take_features(self, count: int) -> Design:
        """Return the design with the first `count` features alone."""
        return replace(self, phi=self.phi[:, :count])

    def logits(self, r: Tensor) -> Tensor:
        """Return the option logits [N, C] at R [r, k]."""
        return self.offset + torch.einsum("ncr,nr->nc", self.moves, self.phi @ r.T)

    def losses(self, r: Tensor) -> Tensor:
        """Return the cross-entropy of each example, [N]."""
        return cross_entropy(self.logits(r), self.labels, reduction="none")


class Fit(NamedTuple):
    """A fitted R [r, k], and what it was chosen by.

    Attributes:
        features, ridge: the chosen k and ridge; no feature: R is empty, nothing is added to the model.
        tried: the mean cross-validated loss of every candidate, by name; empty where there were too few rows.
    """

    r: Tensor
    features: int
    ridge: float
    tried: dict[str, float]


def whiten(inputs: Tensor, count: int) -> Tensor:
    """Return A [k, I] in float64 for inputs [N, I], k <= `count`.

    Row 0 is mu / |mu|^2, mu the mean input. The others are the principal directions of what is left of the inputs without
    their part along mu, scaled so that each feature has the mean square 1. Directions that the inputs hardly have (below
    1e-6 of the first one's share) are left out.
    """
    x = inputs.double()
    mu = x.mean(0)
    rows = [mu / (mu @ mu)]
    rest = x - torch.outer(x @ mu / (mu @ mu), mu)
    if len(rest) < rest.shape[1]:  # the same directions, from the smaller of the two matrices of products
        values, vectors = torch.linalg.eigh(rest @ rest.T / len(rest))
        directions = vectors.T @ rest / (values.clamp(min=1e-300) * len(rest)).sqrt()[:, None]
    else:
        values, vectors = torch.linalg.eigh(rest.T @ rest / len(rest))
        directions = vectors.T
    for i in reversed(range(max(0, len(values) - count + 1), len(values))):
        if values[i] > 1e-6 * values[-1]:
            rows.append(directions[i] / values[i].sqrt())
    return torch.stack(rows)


def make_penalty(features: int, ridge: float, drift: Tensor | None = None) -> Tensor:
    """Return Q [k, k] of the penalty tr(R Q R') / 2.

    drift: what R should not move, [k, k], weighted: the mean product of the features of text that is not scored.
    """
    diagonal = torch.full((features,), ridge, dtype=torch.float64)
    diagonal[0] = BIAS_RIDGE
    penalty = diagonal.diag()
    return penalty if drift is None else penalty + drift[:features, :features]


def minimise(design: Design, penalty: Tensor, start: Tensor | None = None) -> Tensor:
    """Return the R [r, k] that minimises the mean cross-entropy + tr(R Q R') / 2, by Newton's method in float64.

    Each step is halved until the loss falls; the loss is convex, so that it ends at the minimum.
    """
    k, width, n = design.phi.shape[1], design.moves.shape[2], len(design)
    r = torch.zeros(width, k, dtype=torch.float64) if start is None else start
    eye = torch.eye(width, dtype=torch.float64)

    def value(r: Tensor) -> float:
        return float(design.losses(r).mean() + 0.5 * ((r @ penalty) * r).sum())

    best = value(r)
    for _ in range(MAX_NEWTON_STEPS):
        shares = design.logits(r).softmax(-1)
        errors = shares - one_hot(design.labels, shares.shape[1])
        mean_move = torch.einsum("nc,ncr->nr", shares, design.moves)
        slopes = torch.einsum("nc,ncr->nr", errors, design.moves)
        curves = torch.einsum("nc,nca,ncb->nab", shares, design.moves, design.moves)
        curves -= mean_move[:, :, None] * mean_move[:, None, :]
        gradient = slopes.T @ design.phi / n + r @ penalty
        hessian = torch.empty(width, k, width, k, dtype=torch.float64)
        for a in range(width):
            for b in range(a, width):
                block = design.phi.T @ (design.phi * curves[:, a, b, None]) / n
                hessian[a, :, b], hessian[b, :, a] = block, block.T
        hessian += torch.einsum("ab,kl->akbl", eye, penalty)
        whole = hessian.reshape(width * k, width * k)
        whole.diagonal().add_(1e-9)
        step = torch.linalg.solve(whole, gradient.flatten()).view(width, k)
        size, after = 1.0, value(r - step)
        while not after <= best and size > 1e-3:
            size /= 2
            after = value(r - size * step)
        if not after <= best:
            break
        r, gain, best = r - size * step, best - after, after
        if gain < SMALLEST_GAIN:
            break
    return r


def fold_numbers(labels: Tensor, folds: int = FOLDS) -> Tensor:
    """Return the fold of each example, [N], so that every fold has every label's share, whatever the order of the rows."""
    seen: Counter[int] = Counter()
    numbers = []
    for label in labels.tolist():
        numbers.append(seen[label] % folds)
        seen[label] += 1
    return torch.tensor(numbers)


def validate_candidate(design: Design, penalty: Tensor, folds: Tensor) -> Tensor:
    """Return the loss of each example, [N], under the R that is fitted to the other folds' examples."""
    losses = torch.empty(len(design), dtype=torch.float64)
    for fold in folds.unique():
        inside = folds == fold
        r = minimise(design.take_rows(~inside), penalty)
        losses[inside] = design.take_rows(inside).losses(r)
    return losses


def calibrate(design: Design) -> Tensor:
    """Return the R [r, 1] of the first feature that takes the mean log-probability of each option off, as far as B can."""
    bias = design.offset.log_softmax(-1).mean(0)
    moves = design.moves.mean(0)
    moves = moves - moves.mean(0)  # what all options have in common changes nothing
    return torch.linalg.lstsq(moves, (bias.mean() - bias)[:, None]).solution


@dataclass
class Candidates:
    """The candidates of a choice, with the cross-validated loss of each example under each of them."""

    design: Design
    drift: Tensor | None
    folds: Tensor
    losses: dict[tuple[int, float], Tensor] = field(default_factory=dict)  # (features, ridge) -> [N]

    def validate(self, features: int, ridge: float) -> float:
        """Return the mean loss of a candidate, which is computed once."""
        if (features, ridge) not in self.losses:
            penalty = make_penalty(features, ridge, self.drift)
            held = self.design.take_features(features)
            self.losses[features, ridge] = validate_candidate(held, penalty, self.folds)
        return float(self.losses[features, ridge].mean())

    def best(self) -> tuple[int, float]:
        """Return the candidate of the lowest mean loss; SAFE_FEATURES where they are within its standard error."""
        means = {candidate: float(losses.mean()) for candidate, losses in self.losses.items()}
        best = min(means, key=lambda candidate: (means[candidate], candidate))
        error = float(self.losses[best].std()) / math.sqrt(len(self.design))
        safe = [candidate for candidate in means if candidate[0] == SAFE_FEATURES]
        if best[0] > 1 and safe:
            candidate = min(safe, key=lambda candidate: (means[candidate], candidate))
            if means[candidate] <= means[best] + error:
                return candidate
        return best


def name_candidate(features: int, ridge: float) -> str:
    """Return what a candidate is called where its loss is told."""
    return f"{features} features, ridge {ridge:g}"


def choose_fit(design: Design, drift: Tensor | None = None) -> Fit:
    """Return the R that suits the examples, with the number of features and the ridge of the lowest cross-validated loss.

    Args:
        design: the examples with all features that may be used, the most important first.
        drift: the part of the penalty, [k, k], that keeps other text as it is.

    With fewer than MIN_ROWS examples, or fewer than two of a label that occurs, only the options' bias is taken off.
    """
    counts = Counter(design.labels.tolist())
    if len(design) < MIN_ROWS or min(counts.values()) < MIN_ROWS_OF_A_LABEL:
        return Fit(calibrate(design), 1, math.inf, {})
    candidates = Candidates(design, drift, fold_numbers(design.labels))
    candidates.losses[0, 0.0] = design.losses(torch.zeros(design.moves.shape[2], design.phi.shape[1]).double())
    candidates.validate(1, BIAS_RIDGE)
    most = min(design.phi.shape[1], len(design) // 2)
    sizes = [count for count in FEATURE_COUNTS if count <= most] or [most]
    for count in sizes:
        candidates.validate(count, FIRST_RIDGE)
    for count in {min(sizes, key=lambda count: candidates.validate(count, FIRST_RIDGE)), min(SAFE_FEATURES, sizes[-1])}:
        for ridge in RIDGES:
            candidates.validate(count, ridge)
    features, ridge = candidates.best()
    tried = {name_candidate(*pair): float(losses.mean()) for pair, losses in candidates.losses.items()}
    if not features:
        return Fit(torch.zeros(design.moves.shape[2], 0).double(), 0, 0.0, tried)
    r = minimise(design.take_features(features), make_penalty(features, ridge, drift))
    return Fit(r, features, ridge, tried)

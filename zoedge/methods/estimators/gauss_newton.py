"""w = (H + damping mean(diag H) I)^-1 g: a Gauss-Newton step among m directions, from the logits of one forward pass.

A step measures f, the logits of every example's options, at theta and at theta + eps z_i, and so J_i = (f(theta + eps z_i) -
f(theta)) / eps for all m directions. g_i = mean over examples of sum_c J_ic (softmax(f) - onehot)_c is the slope of the
cross-entropy. H_ij is the covariance of J_i and J_j under p = (softmax(f) + 1/C) / 2, the generalised Gauss-Newton matrix
(Schraudolph 2002) with probabilities that are never 0. A task without options gives losses alone: then J_i is the slope
of each example's loss, g its mean, and H the empirical Fisher matrix, mean J_i J_j.
No step moves the centred logits (else the losses) of the batch by more than `trust`, as a root mean square, nor theta
by more than `reach` radii, likewise. Without the second limit LoRA's first step, which sees only B's slopes since B is 0,
may move A so far that the next slopes are thousands of times as large (docs/lab-notes.md).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
from annotated_doc import Doc
from annotated_types import Ge

from ...core.types import AbstractEstimator, Oracle, Positive, Record


@dataclass(frozen=True)
class GaussNewton(AbstractEstimator):
    """Gauss-Newton steps, and their options. docs/lab-notes.md has what they reached."""

    only_with = {"rule": ("sgd",), "task.objective": ("loss",)}
    per_example = True
    known_lr = 0.5
    eps: Annotated[Positive, Doc("The smoothing radius: how far from theta the logits are measured.")] = 3e-3
    queries: Annotated[int, Ge(1), Doc("Directions of a step, m. Many of them overfit a small batch.")] = 4
    damping: Annotated[Positive, Doc("What is added to the diagonal of H, as a share of its mean.")] = 0.3
    reach: Annotated[
        Positive, Doc("The most that a step may move, in radii: further off, the measured slopes do not hold.")
    ] = 30.0
    trust: Annotated[
        Positive, Doc("The most that a step may move the batch's centred logits, as a root mean square.")
    ] = 1.0

    @np.errstate(invalid="ignore", over="ignore")  # of logits that are not finite; the engine skips such a step
    def measure(self, oracle: Oracle, past: Sequence[Record]) -> list[float]:
        points = [(), *(((self.eps, q),) for q in range(self.queries))]
        if (outputs := oracle.outputs(points)) is not None:
            logits = np.array(outputs.logits)  # [1 + m, B, C]
            slopes = (logits[1:] - logits[0]) / self.eps
            shares = softmax(logits[0])
            errors = shares - np.eye(logits.shape[2])[outputs.labels]
            gradient = np.einsum("mbc,bc->m", slopes, errors) / len(errors)
            mixed = (shares + 1 / logits.shape[2]) / 2  # where softmax is 0 or 1, H would be singular
            centred = slopes - (slopes * mixed).sum(2, keepdims=True)
            hessian = np.einsum("mbc,nbc,bc->mn", centred, centred, mixed) / len(errors)
            moved = slopes - slopes.mean(2, keepdims=True)
        else:
            losses = np.array(oracle.each(points))  # [1 + m, B]
            moved = ((losses[1:] - losses[0]) / self.eps)[..., None]
            gradient = moved.mean((1, 2))
            hessian = np.einsum("mbc,nbc->mn", moved, moved) / moved.shape[1]
        damped = hessian + (self.damping * hessian.trace() / self.queries + 1e-10) * np.eye(self.queries)
        weights = np.linalg.solve(damped, gradient) if np.isfinite(damped).all() else np.full(self.queries, np.nan)
        change = float(np.sqrt((np.einsum("m,mbc->bc", weights, moved) ** 2).sum(1).mean()))
        length = oracle.lr * float(np.linalg.norm(weights))
        share = min(1.0, self.trust / max(change, 1e-300), self.reach * self.eps / max(length, 1e-300))
        return [float(w) for w in weights * share]


def softmax(logits: Any) -> Any:
    """Return softmax over the last axis of an array."""
    powers = np.exp(logits - logits.max(-1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True)

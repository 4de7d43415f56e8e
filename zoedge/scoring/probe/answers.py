"""This module fits a closed-form start to answers over the whole vocabulary.

The last block adds W_down m to the hidden states h at every scored token, where m [I] is the input of its last Linear. What
follows, the tail, works on rows alone: a norm and the head. A term B R A m added to h moves the logits f of a row by
M R phi to first order, where phi = A m are k features and M = df/dh B. The tail's norm divides by the size s of h, so that
M = (G - f q') / s, where G [V, r] are the head's rows along B's columns, which is one matrix for all rows, and q [r] is how
s grows along them. A Gauss-Newton step of the mean cross-entropy therefore costs little more than the logits do.

B's columns are those along which the loss falls most for what the logits turn: B = F^-1/2 V, where F is the Fisher matrix of
h (the mean of e e', e the gradient at h of the loss of a label drawn from the model's own p) and V are the first right
singular vectors of C F^-1/2, C the mean of phi e' at the right tokens.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from ..rows.row import seeded_permutation
from .features import OTHER_ROWS, other_positions, watch_inputs, write_module
from .fit import BIAS_RIDGE, MIN_ROWS, SAFE_FEATURES, Fit, make_penalty, whiten
from .tail import Tail, reduce_vocabulary, state_gradients

if TYPE_CHECKING:
    from ..models.base import Base
    from ..tasks._examples import Batch, Examples

ANSWER_TOKENS = 6144  # scored tokens at most that a start is fitted to; 512 rows of JSON answers have 4,600
FEATURE_COUNTS = (8, 16, 32)
MAX_RANK = 16  # of the term: what 15 different tokens of an answer can use
TERM_VALUES = 300_000  # of A and B at most: 750 kB in a log's header, which may have 1 MiB
RIDGE = 0.1
DRIFT_WEIGHT = 1.0  # of what the term does to unscored positions; answers lose nothing by it
FISHER_FLOOR = 0.1  # of the mean eigenvalue, added to all: F is estimated from as many rows as it has columns
ANSWER_FOLDS = 3  # of whole examples: a fit takes seconds
CROSS_VALIDATED_TOKENS, HELD_OUT = 2560, 5  # with more tokens, a held-out fifth alone chooses
MAX_STEPS, FIRST_DAMPING, LEAST_DAMPING, MOST_TRIES = 14, 0.03, 1e-3, 6
SMALLEST_GAIN = 1e-4  # of the loss, in nats a token: a step that gains less is the last


@dataclass(frozen=True)
class AnswerFeatures:
    """What one pass shows of the T scored tokens of N examples.

    Attributes:
        inputs: the input of the last block's last Linear at each, [T, I] float32.
        states: the hidden states with that Linear's output added, which the last norm reads, [T, H] float32.
        targets: the right tokens, [T].
        owners: the place of each one's example among the chosen, [T], ascending.
        others: the same inputs at positions that are not scored, [M, I] float32; no row where every one is scored.
    """

    inputs: Tensor
    states: Tensor
    targets: Tensor
    owners: Tensor
    others: Tensor


def choose_examples(examples: Examples, most: int) -> list[int]:
    """Return the numbers of some examples, ascending: `most` of them and ANSWER_TOKENS scored tokens at most."""
    chosen: list[int] = []
    tokens = 0
    for i in seeded_permutation(len(examples), 0, 0)[:most]:
        tokens += len(examples.targets[i])
        if chosen and tokens > ANSWER_TOKENS:
            break
        chosen.append(i)
    return sorted(chosen)


def collect_answers(base: Base, examples: Examples, chosen: list[int], batches: Iterable[list[int]]) -> AnswerFeatures:
    """Return the features of some examples of one sequence each, by one pass over each.

    Args:
        base: no points may be held in it, so that the pass is the base's own.
        chosen: the numbers of the examples, ascending.
        batches: the same numbers, grouped into forwards.
    """
    rows: dict[int, tuple[Tensor, Tensor]] = {}
    others = []
    with watch_inputs(write_module(base)[1], base.facts.read_norm(base.model)) as (written, read):
        for numbers in batches:
            base.hidden_states(read_other_rows(examples.collate(numbers)), 1)
            for place, number in enumerate(numbers):
                scored, free = len(examples.rows[number]), len(other_positions(examples, number))
                rows[number] = written[-1][place, :scored].clone(), read[-1][place, :scored].clone()
                others.append(written[-1][place, scored : scored + free].clone())
            written.clear()
            read.clear()
    unscored = torch.cat(others)
    return AnswerFeatures(
        torch.cat([rows[number][0] for number in chosen]),
        torch.cat([rows[number][1] for number in chosen]),
        torch.tensor([target for number in chosen for target in examples.targets[number]]),
        torch.tensor([place for place, number in enumerate(chosen) for _ in examples.targets[number]]),
        unscored[seeded_permutation(len(unscored), 0, 0)[:OTHER_ROWS]],
    )


def read_other_rows(batch: Batch) -> Batch:
    """Return a batch that reads, at each sequence, the scored rows, then the other ones, then the first row as a filler."""
    rows = [[*batch.examples.rows[i], *other_positions(batch.examples, i)] for i in batch.index]
    longest = max(map(len, rows))
    return replace(batch, rows=torch.tensor([line + line[:1] * (longest - len(line)) for line in rows]))


# -- what B is chosen by


class Fisher(NamedTuple):
    """A Fisher matrix F [H, H], float64, and F^-1/2 with FISHER_FLOOR of the mean eigenvalue added."""

    matrix: Tensor
    inverse_root: Tensor

    @classmethod
    def of(cls, drawn: Tensor) -> Fisher:
        """Return the matrix of gradients for drawn tokens, [n, H]."""
        matrix = drawn.T @ drawn / len(drawn)
        values, vectors = torch.linalg.eigh(matrix)
        roots = (values + FISHER_FLOOR * values.mean()).rsqrt()
        return cls(matrix, (vectors * roots) @ vectors.T)

    def choose_columns(self, phi: Tensor, gradients: Tensor, rank: int) -> Tensor:
        """Return B [H, r], r <= `rank`, of features [T, k] and the gradients at the right tokens [T, H].

        Each column is scaled so that a unit of it moves the logits of a token, by which F weighs, by a unit.
        """
        cross = phi.T @ gradients / len(phi)
        _, sizes, vectors = torch.linalg.svd(cross @ self.inverse_root, full_matrices=False)
        b = self.inverse_root @ vectors[: min(rank, int((sizes > 1e-6 * sizes[0]).sum()))].T
        return b / torch.einsum("hr,hi,ir->r", b, self.matrix, b).sqrt()


# -- the fit


@dataclass(frozen=True)
class AnswerDesign:
    """The model of T tokens' logits: the tail at h + B R phi, for any R [r, k], k the first features.

    Attributes:
        tail: the last norm and the head.
        b: B [H, r] float32.
        phi: the features, [T, k] float64.
        states: the hidden states h, [T, H].
        targets: the right tokens, [T].
    """

    tail: Tail
    b: Tensor
    phi: Tensor
    states: Tensor
    targets: Tensor

    def move_states(self, r: Tensor, rows: slice = slice(None)) -> Tensor:
        """Return the hidden states of some tokens with the term added."""
        moved: Tensor = (self.phi[rows, : r.shape[1]] @ r.T).float() @ self.b.T
        return self.states[rows] + moved

    def losses(self, r: Tensor) -> Tensor:
        """Return the cross-entropy of each token, [T] in float64."""
        return self.tail.losses(self.move_states(r), self.targets)

    def curves(self, r: Tensor) -> tuple[Tensor, Tensor]:
        """Return the gradient [r, k] and the Gauss-Newton matrix [r, k, r, k] of the mean loss by R, in float64."""
        width, k, n = *r.shape, len(self.targets)
        directions = self.tail.project_directions(self.b)
        first, second = torch.tril_indices(width, width)
        products = directions[:, first] * directions[:, second]
        gradient = torch.zeros(width, k, dtype=torch.float64)
        blocks = torch.zeros(len(first), k * k, dtype=torch.float64)
        for rows in self.tail.chunks(n):
            slopes, curves = self.curve_rows(self.move_states(r, rows), self.targets[rows], directions, products)
            phi = self.phi[rows, :k]
            gradient += slopes.T @ phi / n
            blocks += curves[:, first, second].T @ (phi[:, :, None] * phi[:, None, :]).flatten(1) / n
        whole = torch.empty(width, k, width, k, dtype=torch.float64)
        for block, a, c in zip(blocks.view(-1, k, k), first.tolist(), second.tolist()):
            whole[a, :, c], whole[c, :, a] = block, block.T
        return gradient, whole

    @torch.no_grad()
    def curve_rows(
        self, states: Tensor, targets: Tensor, directions: Tensor, products: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return the gradient [n, r] and the Gauss-Newton matrix [n, r, r] of each token's loss by its R phi [r].

        Args:
            states, targets: of n tokens.
            directions: G [V, r].
            products: those of its columns a and c <= a, [V, r (r + 1) / 2].

        With f the logits without biases, M'v = (G'v - q (f'v)) / s and the covariance of M under the softmax p is
        (Cov(G) - c q' - q c' + Var(f) q q') / s^2, c = Cov(G, f).
        """
        rows = self.tail.describe_rows(states, targets)
        q = rows.centred @ self.b.to(rows.centred.device) / (states.shape[1] * rows.sizes[:, None])
        own = rows.logits - (self.tail.weight @ self.tail.zero + self.tail.bias)
        slopes = (rows.errors @ directions - q * (rows.errors * own).sum(1, keepdim=True)) / rows.sizes[:, None]
        shares = rows.logits.softmax(-1)
        mean = shares @ directions
        own = own - (shares * own).sum(1, keepdim=True)
        weighted = shares * own
        along = weighted @ directions
        variance = (weighted * own).sum(1)[:, None, None]
        width = directions.shape[1]
        first, second = torch.tril_indices(width, width)
        curves = q.new_empty(len(q), width, width)
        curves[:, first, second] = curves[:, second, first] = shares @ products
        curves -= mean[:, :, None] * mean[:, None, :]
        curves -= along[:, :, None] * q[:, None, :] + q[:, :, None] * along[:, None, :]
        curves += variance * q[:, :, None] * q[:, None, :]
        return slopes.cpu().double(), (curves / rows.sizes[:, None, None] ** 2).cpu().double()


def minimise_answers(design: AnswerDesign, penalty: Tensor, start: Tensor) -> Tensor:
    """Return the R [r, k] of a low mean cross-entropy + tr(R Q R') / 2, from `start`, by Levenberg's and Marquardt's method.

    A damping times the matrix's diagonal is added to the Gauss-Newton matrix; it grows where the loss would not fall.
    """
    r, damping = start, FIRST_DAMPING

    def value(r: Tensor) -> float:
        return float(design.losses(r).mean() + 0.5 * ((r @ penalty) * r).sum())

    best = value(r)
    for _ in range(MAX_STEPS):
        gradient, matrix = design.curves(r)
        gradient += r @ penalty
        matrix += torch.einsum("ab,kl->akbl", torch.eye(len(r), dtype=torch.float64), penalty)
        whole = matrix.reshape(r.numel(), r.numel())
        whole.diagonal().add_(1e-5)
        diagonal = whole.diagonal().diag()
        for _ in range(MOST_TRIES):
            after = r - torch.linalg.solve(whole + damping * diagonal, gradient.flatten()).view_as(r)
            found = value(after)
            if found < best:
                break
            damping *= 4
        else:
            return r
        r, gain, best, damping = after, best - found, found, max(damping / 4, LEAST_DAMPING)
        if gain < SMALLEST_GAIN:
            break
    return r


class AnswerFit(NamedTuple):
    """A fitted term B A of rank r; r is 0 where nothing is better than something.

    Attributes:
        a, b: A [r, I] and B [H, r] float32.
        fit: R, and what it was chosen by.
    """

    a: Tensor
    b: Tensor
    fit: Fit


@dataclass(frozen=True)
class Problem:
    """The tokens of a start, and all that is computed once for every candidate.

    Attributes:
        features: what one pass shows.
        tail: over the vocabulary that the fit reads.
        whitening: A [k, I] float64.
        phi: the features of the scored tokens, [T, k] float64.
        drift: what R should not move, [k, k]: DRIFT_WEIGHT times the mean product of the features of unscored positions.
        gradients: of the loss at the hidden states, [T, H] float64.
        fisher: the Fisher matrix of these states.
    """

    features: AnswerFeatures
    tail: Tail
    whitening: Tensor
    phi: Tensor
    drift: Tensor
    gradients: Tensor
    fisher: Fisher

    @classmethod
    def of(cls, base: Base, features: AnswerFeatures) -> Problem:
        """Return the problem of some features of a base."""
        tail = reduce_vocabulary(Tail.of(base), features.states, features.targets)
        whitening = whiten(features.inputs, FEATURE_COUNTS[-1])
        others = features.others.double() @ whitening.T
        drift = DRIFT_WEIGHT * others.T @ others / max(1, len(others))
        gradients, drawn = state_gradients(tail, features.states, features.targets)
        phi = features.inputs.double() @ whitening.T
        return cls(features, tail, whitening, phi, drift, gradients, Fisher.of(drawn))

    def design(self, chosen: Tensor) -> AnswerDesign:
        """Return the design of some tokens, by a mask [T], with the B that suits them."""
        f, targets = self.features, self.features.targets[chosen]
        phi = self.phi[chosen]
        affordable = TERM_VALUES // (f.inputs.shape[1] + f.states.shape[1])
        rank = min(MAX_RANK, len(targets.unique()), max(1, affordable))
        b = self.fisher.choose_columns(phi[:, :SAFE_FEATURES], self.gradients[chosen], rank)
        return AnswerDesign(self.tail, b.float(), phi, f.states[chosen], targets)

    def fit_counts(self, design: AnswerDesign, counts: Sequence[int]) -> Iterator[Tensor]:
        """Yield the R of each number of features, ascending, each from the one before it."""
        r = torch.zeros(design.b.shape[1], 0, dtype=torch.float64)
        for count in counts:
            start = torch.cat([r, r.new_zeros(len(r), count - r.shape[1])], dim=1)
            r = minimise_answers(design, make_penalty(count, RIDGE, self.drift), start)
            yield r

    def validate(self, counts: Sequence[int]) -> dict[int, Tensor]:
        """Return each candidate's loss of every token [T] under the R that is fitted to other examples; nan: not held out."""
        is_large = len(self.phi) > CROSS_VALIDATED_TOKENS
        folds = self.assign_folds(HELD_OUT if is_large else ANSWER_FOLDS)
        losses = {count: torch.full((len(self.phi),), math.nan, dtype=torch.float64) for count in (0, *counts)}
        for fold in range(1 if is_large else ANSWER_FOLDS):
            inside = folds == fold
            held, fitted = self.features.states[inside], self.design(~inside)
            targets = self.features.targets[inside]
            losses[0][inside] = self.tail.losses(held, targets)
            held_out = replace(fitted, phi=self.phi[inside], states=held, targets=targets)
            for count, r in zip(counts, self.fit_counts(fitted, counts)):
                losses[count][inside] = held_out.losses(r)
        return losses

    def assign_folds(self, count: int) -> Tensor:
        """Return the fold of each token, [T]: that of its example, at random, as rows may stand in a regular order."""
        examples = int(self.features.owners.max()) + 1
        folds = torch.empty(examples, dtype=torch.long)
        folds[torch.tensor(seeded_permutation(examples, 0, 1))] = torch.arange(examples) % count
        return folds[self.features.owners]

    def choose_count(self, losses: dict[int, Tensor]) -> int:
        """Return the number of features of the lowest mean loss; SAFE_FEATURES where that is within its standard error."""
        means = {count: float(each.nanmean()) for count, each in losses.items()}
        best = min(means, key=lambda count: (means[count], count))
        known = ~losses[best].isnan()
        sums = torch.zeros(int(self.features.owners.max()) + 1, dtype=torch.float64)
        sums.index_add_(0, self.features.owners[known], losses[best][known] - means[best])
        error = float(sums.pow(2).sum().sqrt() / known.sum())  # of whole examples: the tokens of one are alike
        if best > 1 and SAFE_FEATURES in means and means[SAFE_FEATURES] <= means[best] + error:
            return SAFE_FEATURES
        return best


def fit_answers(base: Base, features: AnswerFeatures) -> AnswerFit:
    """Return the term that suits some answers, with the number of features of the lowest cross-validated loss.

    With fewer than MIN_ROWS examples, the bias feature alone is fitted, and nothing is compared.
    """
    problem = Problem.of(base, features)
    count, tried = 1, {}
    examples = len(features.owners.unique())
    if examples >= MIN_ROWS:
        counts = [1, *(k for k in FEATURE_COUNTS if k <= min(examples // 2, problem.phi.shape[1]))]
        losses = problem.validate(counts)
        count = problem.choose_count(losses)
        tried = {f"{k} features, ridge {name_ridge(k):g}": float(each.nanmean()) for k, each in losses.items()}
    design = problem.design(torch.ones(len(problem.phi), dtype=torch.bool))
    if not count:
        return AnswerFit(design.b.new_zeros(0, features.inputs.shape[1]), design.b, Fit(torch.zeros(0), 0, 0.0, tried))
    *_, r = problem.fit_counts(design, sorted({k for k in (1, SAFE_FEATURES, count) if k <= count}))
    return AnswerFit((r @ problem.whitening[:count]).float(), design.b, Fit(r, count, name_ridge(count), tried))


def name_ridge(count: int) -> float:
    """Return the ridge of a candidate as it is told: RIDGE, BIAS_RIDGE for the bias feature alone, 0 for nothing."""
    return RIDGE if count > 1 else BIAS_RIDGE * count

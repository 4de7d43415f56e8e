"""This module takes from one forward pass over labelled rows what a closed-form start is fitted to."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ..rows.row import seeded_permutation

if TYPE_CHECKING:
    from ..models.base import Base
    from ..tasks._examples import Batch, Examples

OTHER_ROWS = 4096  # unscored positions at most, of all examples together, whose inputs are kept
OTHER_ROWS_EACH = 8  # of one example
LEAST_SHARE = 1e-4  # of the largest singular value: the logits hardly move along what is below


@dataclass(frozen=True)
class Features:
    """What one pass shows of N examples, each with one scored position.

    Attributes:
        inputs: the input of the last block's last Linear there, [N, I] float32.
        states: the hidden states with that Linear's output added, which the last norm reads, [N, H] float32.
        logits: of the options, [N, C] float32.
        labels: the right options, [N].
        others: the same inputs at positions that are not scored, [M, I] float32.
    """

    inputs: Tensor
    states: Tensor
    logits: Tensor
    labels: Tensor
    others: Tensor


def write_module(base: Base) -> tuple[str, nn.Module]:
    """Return the full name and the module of the last block's last Linear."""
    name = f"{base.facts.BLOCKS}.{len(base.blocks) - 1}.{base.facts.WRITE}"
    return name, base.model.get_submodule(name)


@contextmanager
def watch_inputs(*modules: nn.Module) -> Iterator[list[list[Tensor]]]:
    """Collect what each module reads in the forwards inside the context, in order."""
    seen: list[list[Tensor]] = [[] for _ in modules]

    def note(into: list[Tensor]) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        return lambda module, args: into.append(args[0].detach().float().cpu())

    handles = [module.register_forward_pre_hook(note(into)) for module, into in zip(modules, seen)]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def choose_rows(examples: Examples, rows: int) -> list[int]:
    """Return the numbers of `rows` examples at most, ascending, always the same ones of a set."""
    return sorted(seeded_permutation(len(examples), 0, 0)[:rows])


def other_positions(examples: Examples, number: int) -> list[int]:
    """Return some unscored positions of a sequence, spread evenly, without the first, which every sequence has."""
    scored = set(examples.rows[number])
    free = [t for t in range(1, len(examples.tokens[number])) if t not in scored]
    count = min(OTHER_ROWS_EACH, len(free))
    return [free[(2 * j + 1) * len(free) // (2 * count)] for j in range(count)]


def collect_features(base: Base, examples: Examples, chosen: list[int], batches: Iterator[list[int]]) -> Features:
    """Return the features of some examples of one sequence and one scored position each, by one pass over each.

    Args:
        base: no points may be held in it, so that the pass is the base's own.
        chosen: the numbers of the examples, in the order of the result.
        batches: the same numbers, grouped into forwards.
    """
    order: list[int] = []
    inputs, states, logits, others = [], [], [], []
    with watch_inputs(write_module(base)[1], base.facts.read_norm(base.model)) as (written, read):
        for numbers in batches:
            batch, is_ignored = add_other_rows(examples.collate(numbers))
            h = base.hidden_states(batch, 1)
            inputs.append(written[-1][:, 0].clone())
            states.append(read[-1][:, 0].clone())
            logits.append(base.logits(h[:, 0], batch.targets[0]).float().cpu())
            others.append(written[-1][~is_ignored])
            order += numbers
            written.clear()
            read.clear()
    place = {number: i for i, number in enumerate(order)}
    index = torch.tensor([place[number] for number in chosen])
    unscored = torch.cat(others)
    kept = seeded_permutation(len(unscored), 0, 0)[:OTHER_ROWS]
    return Features(
        torch.cat(inputs)[index],
        torch.cat(states)[index],
        torch.cat(logits)[index],
        torch.tensor([examples.labels[i] for i in chosen]),
        unscored[kept],
    )


def add_other_rows(batch: Batch) -> tuple[Batch, Tensor]:
    """Return a batch that reads some positions besides the scored one, and which of its rows are no such position, [S, R].

    A sequence too short for so many repeats its scored row.
    """
    rows, ignored = [], []
    for i, scored in zip(batch.index, batch.rows[:, 0].tolist()):
        others = other_positions(batch.examples, i)
        missing = OTHER_ROWS_EACH - len(others)
        rows.append([scored, *others] + [scored] * missing)
        ignored.append([True] + [False] * len(others) + [True] * missing)
    return replace(batch, rows=torch.tensor(rows)), torch.tensor(ignored)


def option_logits(base: Base, targets: Tensor) -> Callable[[Tensor], Tensor]:
    """Return the function from hidden states [N, H], as the last norm reads them, to the options' logits [N, C], float32.

    It is what remains of the network after the last block, and works on rows alone; it can be differentiated.
    """
    head, columns = base.facts.head(base.model), targets.to(base.device)

    def logits(states: Tensor) -> Tensor:
        h = base.facts.head_input(base.model, states.to(base.device, base.dtype))
        return base.project(head, h, columns).float().cpu()

    return logits


def option_directions(slopes: Tensor) -> Tensor:
    """Return B [H, r] whose columns move the centred option logits by unit vectors, those that move them most easily first.

    It is E / S of their mean derivative by the hidden states, U S E' [C, H] (`option_slopes`), without the centred logits'
    own null direction and what hardly moves them: r < C. So a coefficient of 1 means the same in every model.
    """
    _, s, e = torch.linalg.svd(slopes, full_matrices=False)
    kept = s[: len(s) - 1] > LEAST_SHARE * s[0]
    return (e[: len(kept)][kept] / s[: len(kept)][kept, None]).T


def option_slopes(logits: Callable[[Tensor], Tensor], states: Tensor, directions: Tensor | None = None) -> Tensor:
    """Return the derivative of the centred option logits by the hidden states.

    Args:
        logits: as `option_logits` returns it.
        states: [N, H].
        directions: columns B [H, r] along which the derivative is taken.

    Returns: [N, C, r] of each example; where directions is None, their mean over the examples, [C, H]. In float64.
    """
    states = states.clone().requires_grad_()
    with torch.enable_grad():
        values = logits(states)
        slopes = []
        for c in range(values.shape[1]):
            (slope,) = torch.autograd.grad(values[:, c].sum(), states, retain_graph=True)
            slopes.append(slope.double().mean(0) if directions is None else slope.double() @ directions)
    stacked = torch.stack(slopes, dim=-2)  # [C, H] or [N, C, r]
    return stacked - stacked.mean(-2, keepdim=True)

"""This module computes the fixed matrices of an aligned space (methods/spaces/aligned.py) from unlabelled training rows."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.functional import pad

from ..errors import DataError
from ..methods.spaces._basis import Basis
from ..methods.spaces.aligned import BASIS_KEY, AlignedSpace
from ..scoring.probe.features import choose_rows, option_directions, option_logits, option_slopes, watch_inputs
from ..scoring.probe.fit import whiten
from ..scoring.tasks._training import pack_batches
from .display import Plain
from .folder import append_metric
from .setup import Measuring

if TYPE_CHECKING:
    from ..scoring.models.base import Base
    from ..scoring.tasks._examples import Examples

BASIS_ROWS = 256  # training rows that A and B are computed from at most


def align_space(measuring: Measuring, space: AlignedSpace, folder: Path, show: Plain) -> None:
    """Compute A and B of an aligned space from one pass over some training rows, and give them to it.

    DataError: the task's options are not one token each.
    """
    examples = measuring.texts.train
    if not measuring.task.option_count or examples.sequences_each != 1:
        raise DataError(
            "space: aligned moves the logits of options that are one token each after every prompt, and these are not. "
            "Choose such words in task.options, or write space: lora."
        )
    chosen = choose_rows(examples, BASIS_ROWS)
    with show.phase("aligning the space with the options"):
        inputs, states = collect_inputs(measuring.base, examples, chosen, list(space.shapes))
        a = {name: whiten_inputs(values, space.options.k) for name, values in inputs.items()}
        logits = option_logits(measuring.base, torch.tensor(examples.targets[0]))
        b = option_directions(option_slopes(logits, states))[:, : space.options.rank]
        b = pad(b, (0, space.options.rank - b.shape[1]))  # what does not move the logits is left alone
        space.take_start({**space.describe(), BASIS_KEY: Basis.of(a, b.float()).describe()})
    count = len(space.value)
    show.say(f"aligned space of {count:,} numbers, from one pass over {len(chosen):,} rows without their labels")
    append_metric(folder, event="aligned", passes=len(chosen), elements=count)


def whiten_inputs(inputs: Tensor, k: int) -> Tensor:
    """Return A [k, in] for inputs [N, in]; rows beyond what they can give are zero."""
    a = whiten(inputs, k)
    return pad(a, (0, 0, 0, k - len(a)))


def collect_inputs(
    base: Base, examples: Examples, chosen: list[int], modules: list[str]
) -> tuple[Mapping[str, Tensor], Tensor]:
    """Return what modules read at the scored position of some examples, [N, in] each, and what the last norm reads, [N, H].

    The base must be as it is without training. The last block computes the scored positions alone, the others all.
    """
    last_block = f"{base.facts.BLOCKS}.{len(base.blocks) - 1}."
    watched = [*map(base.model.get_submodule, modules), base.facts.read_norm(base.model)]
    rows_of: list[list[Tensor]] = [[] for _ in watched]
    with watch_inputs(*watched) as seen:
        for places in pack_batches([len(examples.tokens[i]) for i in chosen]):
            batch = examples.collate([chosen[i] for i in places])
            base.hidden_states(batch, 1)
            scored, order = batch.rows[:, 0], torch.arange(len(batch.rows))
            for name, inputs, kept in zip([*modules, last_block], seen, rows_of):
                values = inputs.pop().unflatten(0, (len(scored), -1)).flatten(1, -2)  # OPT's fc2 reads [S * T, in]
                kept.append(values[:, 0].clone() if name.startswith(last_block) else values[order, scored])
    return {name: torch.cat(kept) for name, kept in zip(modules, rows_of)}, torch.cat(rows_of[-1])

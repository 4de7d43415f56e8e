"""This module finds out, before the first step, whether the base's own loss is finite, and names what is not."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from ..errors import DivergedError
from ..scoring.models.quantised import LinearScales

if TYPE_CHECKING:
    from ..scoring.models.base import Base
    from .setup import Measuring


def check_finite(measuring: Measuring) -> None:
    """Refuse a base whose hidden states or losses on the first batch are not finite.

    No smaller step size could help there. DivergedError: it names the tensor that is not finite, or the type that overflows.
    """
    base, batch = measuring.base, measuring.task.batch(0)
    with measuring.space.visit([lambda leaf: None]):
        hidden = base.hidden_states(batch, 1)
        is_finite = bool(hidden.isfinite().all())
        if is_finite and measuring.recipe.task.objective == "loss":
            is_finite = bool(measuring.task.score(base, batch, 1).isfinite().all())
    if not is_finite:
        raise DivergedError(f"The base's own loss is not finite: {explain_nonfinite(base)}")


def explain_nonfinite(base: Base) -> str:
    """Return what of a base is not finite, as the end of a sentence, and what to do."""
    named = [
        name
        for name, p in base.model.named_parameters()
        if p.is_floating_point() and not p.is_meta and not bool(p.isfinite().all())
    ]
    named += [
        f"{name} (its scales)"
        for name, module in base.model.named_modules()
        if LinearScales.has(module) and not bool(LinearScales(module).read().isfinite().all())
    ]
    if named:
        more = f" and {len(named) - 1:,} more" if len(named) > 1 else ""
        return f"{named[0]}{more} holds NaN or infinity, so that the checkpoint is broken. Fetch it again, or name another."
    if base.dtype == torch.float32:
        return "all weights are, and the forward overflows even in fp32, so that the checkpoint is broken."
    kind = str(base.dtype).removeprefix("torch.")
    return f"all weights are, so that the forward overflows in {kind}. Set model.compute_dtype: fp32."

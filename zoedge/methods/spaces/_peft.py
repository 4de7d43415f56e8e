"""This module writes the configuration by which PEFT loads a space of low-rank terms."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any


def infer_head(names: Iterable[str]) -> str:
    """Return what follows AutoModelFor in the name of transformers' class. It is read off the modules' names."""
    return "MaskedLM" if any(name.startswith("roberta.") for name in names) else "CausalLM"


def make_lora_config(modules: Sequence[str], rank: int, alpha: float) -> dict[str, Any]:
    """Return adapter_config.json without the base's name, with the shortest target names that PEFT understands.

    These are last names with layers_to_transform, which PEFT looks for inside `layers.N.` alone, or full names if the
    modules are not all the combinations of some names and some layers.

    Args:
        modules: the full names of the adapted modules.
        rank, alpha: of all terms, which are alpha / rank * B A.
    """
    places = [re.fullmatch(r"(?:.*\.)?layers\.([0-9]+)\..*?([^.]+)", m) for m in modules]
    sites = [(int(p[1]), p[2]) for p in places if p]
    layers, names = sorted({n for n, _ in sites}), sorted({w for _, w in sites})
    product = len(sites) == len(modules) == len(layers) * len(names) == len(set(sites))
    task = "CAUSAL_LM" if infer_head(modules) == "CausalLM" else None  # PEFT has no word for masks
    return {
        "peft_type": "LORA",
        "task_type": task,
        "inference_mode": True,
        "r": rank,
        "lora_alpha": int(alpha) if float(alpha).is_integer() else alpha,
        "lora_dropout": 0.0,
        "target_modules": names if product else list(modules),
        "layers_to_transform": layers if product else None,
        "layers_pattern": "layers" if product else None,
        "bias": "none",
        "fan_in_fan_out": False,
        "use_rslora": False,
        "use_dora": False,
        "modules_to_save": None,
        "rank_pattern": {},
        "alpha_pattern": {},
    }

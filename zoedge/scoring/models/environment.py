"""This module describes what the bits of a forward pass may depend on besides the model and its inputs."""

from __future__ import annotations

import platform
from typing import Any, Protocol

import torch


class Computation(Protocol):
    """What is asked of a base to describe its forward."""

    model: Any  # of transformers
    dtype: torch.dtype
    device: torch.device


def describe_environment(base: Computation) -> dict[str, Any]:
    """Return what the bits of a base's forward may depend on, by name: versions, device, threads, types."""
    import bitsandbytes
    import transformers

    device = torch.cuda.get_device_name(0) if base.device.type == "cuda" else platform.processor() or platform.machine()
    return {
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "bitsandbytes": bitsandbytes.__version__,
        "device": f"{base.device.type} {device}",
        "cpu": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "compute": str(base.dtype),
        "linear": "train mode, others eval, dropout 0",
        "attention": base.model.config._attn_implementation,
    }

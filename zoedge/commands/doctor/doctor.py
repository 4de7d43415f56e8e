"""This module examines a machine: versions, memory, disk, and whether its arithmetic gives the bits that replay needs."""

from __future__ import annotations

import os
import platform
import shutil
from importlib.metadata import version
from typing import Any

import numpy as np

from ...core.digests import selftest
from ...core.parts import PART_FOLDERS, list_words, load_part
from ...scoring.sources.cache import cache_folder
from ...scoring.sources.catalog import PACKAGED_MODELS

TESTED_VERSIONS = {
    "torch": "2.13",
    "transformers": "5.23",
    "bitsandbytes": "0.50",
    "peft": "0.21",
    "safetensors": "0.8",
}
# The first 16 digits of `selftest`. A machine that gives others would replay other bits. Besides, all pairs of noise and
# rule are compared with numpy, which shares no code with torch.
GOLDEN_DIGESTS = {"normal sgd": "62fdde3c68e6584d", "rademacher sgd": "3ead505a4c118888"}


def advise(report: dict[str, Any], well: bool) -> list[tuple[str, str]]:
    """Return the hints (what hinders zoedge, the command to type) that follow from an examination.

    report, well: what `examine` returned.
    """
    from .hints import find_hints, gather_facts

    numerics = str(report.get("numerics", "")).endswith("replay is exact here")
    return find_hints(gather_facts(numerics, well or not numerics))


def examine() -> tuple[dict[str, Any], bool]:
    """Examine this machine, and return what was found for each line of the report, by its heading, and whether all is well."""
    import psutil
    import torch

    memory, folder = psutil.virtual_memory(), cache_folder()
    report: dict[str, Any] = {
        "zoedge": version("zoedge"),
        "python": f"{platform.python_version()} on {platform.platform()}",
    }
    for name, tested in TESTED_VERSIONS.items():
        installed = version(name)
        report[name] = installed if installed.startswith(tested) else f"{installed} (tested with {tested})"
    threads = torch.get_num_threads()
    report["cpu"] = f"{os.cpu_count()} cores, {threads} threads, {torch.backends.cpu.get_cpu_capability()}"
    report["gpu"] = torch.cuda.get_device_name(0) if torch.cuda.is_available() else explain_missing_gpu()
    report["memory"] = f"{memory.available / 2**30:.1f} of {memory.total / 2**30:.1f} GiB free"
    report["disk"] = f"{shutil.disk_usage(folder).free / 2**30:.1f} GiB free at {folder}"
    packaged = [name for name in PACKAGED_MODELS if (folder / "models" / name).is_dir()]
    report["cached"] = ", ".join(packaged) or "no model yet"
    report["numerics"], is_exact = check_replay_bits()
    report["forward"], is_stable = check_nf4_product()
    return report, is_exact and is_stable


def check_replay_bits() -> tuple[str, bool]:
    """Compare the bits of every pair of noise and rule in torch with numpy's. Return (the finding, whether all agree)."""
    import torch

    noises, wrong = list_words(PART_FOLDERS["noise"]), []
    pairs = [
        (noise, rule)
        for rule in list_words(PART_FOLDERS["rule"])
        for noise in load_part("rule", rule).only_with.get("noise", noises)
    ]
    for noise, rule in pairs:
        parts = load_part("noise", noise)(), load_part("rule", rule)()
        digest, second = selftest(*parts, torch.zeros(1024)), selftest(*parts, np.zeros(1024, np.float32))
        if digest != second or GOLDEN_DIGESTS.get(f"{noise} {rule}", digest.hex()[:16]) != digest.hex()[:16]:
            wrong.append(f"{noise} {rule} gives {digest.hex()[:16]}, and {second.hex()[:16]} in numpy")
    well = f"{len(pairs)} pairs of noise and rule give their golden bits: replay is exact here"
    return "; ".join(wrong) or well, not wrong


def explain_missing_gpu() -> str:
    """Return why torch sees no GPU, in a few words."""
    import torch

    if shutil.which("nvidia-smi") and torch.version.cuda is None:
        return "there is one, but this torch is a CPU-only build"
    return "none"


def check_nf4_product() -> tuple[str, bool]:
    """Test a 4-bit product on the CPU, and return what was found, and whether it is good.

    It is good if the same product gives the same bits in several calls, and is within 1e-3 of the product with the dequantised
    matrix.
    """
    import torch

    from ...scoring.models.quantised import (  # imported before bitsandbytes, whose messages at import it silences
        dequantise_weight,
        make_linear_deterministic,
    )

    import bitsandbytes as bnb  # isort: skip

    nn: Any = bnb.nn  # it has no types
    generator = torch.Generator().manual_seed(0)
    layer = nn.Linear4bit(128, 64, bias=False, compute_dtype=torch.float32, quant_type="nf4")
    layer.weight = nn.Params4bit(torch.randn(64, 128, generator=generator), requires_grad=False, quant_type="nf4")
    layer = layer.to("cpu")
    layer.weight = layer.weight.to("cpu") if layer.weight.quant_state is not None else layer.weight._quantize("cpu")
    make_linear_deterministic(layer, torch.float32)
    x = torch.randn(8, 128, generator=generator)
    with torch.inference_mode():
        first = layer(x)
        same = all(torch.equal(layer(x), first) for _ in range(3))
        off = (first - x @ dequantise_weight(layer).T).abs().max().item()
    well = same and off < 1e-3
    return f"nf4 product {'stable' if same else 'CHANGES between calls'}, {off:.1e} from its matrix", well

"""This module finds what about a machine hinders zoedge, and the command that helps.

`gather_facts` looks at the machine. `find_hints` looks at those facts alone, so that tests can make up a machine.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

# as in pyproject.toml
MINIMUM_VERSIONS = {
    "torch": "2.13",
    "transformers": "5.23",
    "bitsandbytes": "0.50.2",
    "peft": "0.21",
    "safetensors": "0.8",
}
EXTRA_PACKAGES = {"lab": ("matplotlib", "sklearn", "scipy"), "report": ("matplotlib",)}
MIN_FREE_BYTES = 1 << 30  # the embedded model needs 93 MB as it is fetched, 269 MB converted and about 100 MB in 4 bits
Hint = tuple[str, str]  # (what hinders zoedge, the command to type)
THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


@dataclass(frozen=True)
class MachineFacts:
    """What the hints depend on: a machine's packages, hardware, free space (in bytes) and environment variables."""

    versions: dict[str, str | None] = field(default_factory=dict)  # None: not installed
    missing: dict[str, list[str]] = field(default_factory=dict)  # extra -> those of its packages that are not installed
    gpu: bool = False  # a driver's nvidia-smi is on the path
    cuda_build: bool = True
    cuda_works: bool = True
    cores: int = 1
    cache: str = ""  # the folder of zoedge's cache
    cache_fault: str = ""  # why it cannot be written
    disk: int = MIN_FREE_BYTES  # bytes that are free where the cache lies
    memory: int = 1 << 40  # bytes that programs may still take
    swapped: int = 0  # bytes
    environment: dict[str, str] = field(default_factory=dict)
    numerics: bool = True  # the doctor's test of the arithmetic of replay passed
    forward: bool = True  # the doctor's test of 4-bit products passed


def gather_facts(numerics: bool = True, forward: bool = True) -> MachineFacts:
    """Return the facts of this machine. The arguments say whether the doctor's two self-tests passed."""
    import psutil
    import torch

    from ...scoring.sources import WISH

    folder = os.environ.get("ZOEDGE_CACHE") or str(
        Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "zoedge"
    )
    fault, free = probe_cache(Path(folder))
    threads = {name: os.environ[name] for name in THREAD_VARIABLES if name in os.environ}
    absent = {extra: [name for name in names if find_spec(name) is None] for extra, names in EXTRA_PACKAGES.items()}
    return MachineFacts(
        versions={name: find_version(name) for name in (*MINIMUM_VERSIONS, "kernels")},
        missing={extra: names for extra, names in absent.items() if names},
        gpu=shutil.which("nvidia-smi") is not None,
        cuda_build=torch.version.cuda is not None,
        cuda_works=torch.cuda.is_available(),
        cores=os.cpu_count() or 1,
        cache=folder,
        cache_fault=fault,
        disk=free,
        memory=psutil.virtual_memory().available,
        swapped=psutil.swap_memory().used,
        environment=threads | {"HF_HUB_OFFLINE": WISH},
        numerics=numerics,
        forward=forward,
    )


def probe_cache(folder: Path) -> tuple[str, int]:
    """Make the cache's folder; return why it cannot be written ("": it can), and the bytes that are free there."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(folder).free
    except OSError as e:
        return e.strerror or str(e), MIN_FREE_BYTES
    return "" if os.access(folder, os.W_OK | os.X_OK) else "Permission denied", free


def find_version(name: str) -> str | None:
    """Return the version of an installed package; None: it is not installed."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def parse_version(text: str) -> tuple[int, ...]:
    """Return the numbers of a version: 2.13.0+cpu gives (2, 13, 0)."""
    return tuple(int(word) for word in text.partition("+")[0].split(".") if word.isdigit())


def find_hints(facts: MachineFacts) -> list[Hint]:
    """Return a hint for everything that hinders zoedge on such a machine, the gravest first."""
    return [
        *find_self_test_hints(facts),
        *find_package_hints(facts),
        *find_gpu_hints(facts),
        *find_cache_hints(facts),
        *find_thread_hints(facts),
        *find_environment_hints(facts),
    ]


def find_self_test_hints(facts: MachineFacts) -> Iterator[Hint]:
    """Yield what to do where one of the doctor's self-tests failed."""
    if not facts.numerics:
        yield (
            "the arithmetic of replay gives other bits here: logs do not replay alike on this machine and on others",
            "ATEN_CPU_CAPABILITY=default zoedge doctor     # if all is well then, set it for every run; report it in any case",
        )
    if not facts.forward:
        yield "a 4-bit product changes between calls", "zoedge finetune RECIPE model.quantization=none"


def find_package_hints(facts: MachineFacts) -> Iterator[Hint]:
    """Yield the packages that are missing or older than those with which zoedge is tested."""
    for name, least in MINIMUM_VERSIONS.items():
        if name not in facts.versions:
            continue
        installed = facts.versions[name]
        if installed is None:
            yield f"{name} is not installed", f"pip install '{name}>={least}'"
        elif parse_version(installed) < parse_version(least):
            yield (
                f"{name} {installed} is older than {least}, with which zoedge is tested",
                f"pip install --upgrade '{name}>={least}'",
            )


def find_gpu_hints(facts: MachineFacts) -> Iterator[Hint]:
    """Yield why a GPU is not used, and the package that would load native code into a GPU's process."""
    if facts.gpu and not facts.cuda_build:
        yield (
            "there is a GPU, and this torch is a CPU-only build",
            "pip uninstall torch && pip install torch     # Linux wheels of the package index are CUDA builds",
        )
    elif facts.gpu and not facts.cuda_works:
        yield (
            "there is a GPU, and torch cannot use it",
            "nvidia-smi     # is the driver new enough, and CUDA_VISIBLE_DEVICES not empty?",
        )
    if facts.versions.get("kernels") is not None:
        yield (
            "the package kernels is installed: bitsandbytes then fetches native code from a hub at import (zoedge forbids it)",
            "pip uninstall kernels",
        )


def find_cache_hints(facts: MachineFacts) -> Iterator[Hint]:
    """Yield what is wrong with the folder of the cache."""
    other_folder = "export ZOEDGE_CACHE=/a/folder/with/room"
    if facts.cache_fault:
        yield f"the cache folder {facts.cache} cannot be written ({facts.cache_fault})", other_folder
    elif facts.disk < MIN_FREE_BYTES:
        yield (
            f"{facts.disk / 2**20:,.0f} MiB are free at {facts.cache}, and a model "
            "of 135 million parameters needs about half a GiB there",
            other_folder,
        )


def find_thread_hints(facts: MachineFacts) -> Iterator[Hint]:
    """Yield the variables that ask for more threads, or for fewer, than there are cores."""
    for name in THREAD_VARIABLES:
        value = facts.environment.get(name, "")
        threads = int(value) if value.isdecimal() else facts.cores
        if threads > facts.cores:
            yield (
                f"{name} is {value}, and there are {facts.cores} cores: threads wait for each other",
                f"export {name}={facts.cores}",
            )
        elif threads < facts.cores:
            yield (
                f"{name} is {value}, and there are {facts.cores} cores: the others are not used",
                f"unset {name}     # or set model.threads in the recipe",
            )


def find_environment_hints(facts: MachineFacts) -> Iterator[Hint]:
    """Yield what swapped memory, the hub's offline switch and missing extras hinder."""
    if facts.swapped > facts.memory:
        yield (
            f"{facts.swapped / 2**30:.1f} GiB are swapped out, more than the "
            f"{facts.memory / 2**30:.1f} GiB of memory that are free: a step may wait for the disk",
            "zoedge finetune RECIPE model.quantization=nf4 train.rows=512     # or end other programs",
        )
    if facts.environment.get("HF_HUB_OFFLINE", "0").lower() not in ("", "0", "false", "no", "off"):
        yield (
            "HF_HUB_OFFLINE is set: models and data sets named ORG/NAME come from the hub's cache alone",
            "unset HF_HUB_OFFLINE TRANSFORMERS_OFFLINE     # or name a folder in model.source",
        )
    for extra, names in facts.missing.items():
        if names:
            yield f"{', '.join(names)} not installed (the extra '{extra}')", f"pip install 'zoedge[{extra}]'"

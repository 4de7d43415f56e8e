"""What about a machine is in the way, and what to type against it: facts first, then sentences about them alone."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

MINIMUM_VERSIONS = {
    "torch": "2.13",
    "transformers": "5.23",
    "bitsandbytes": "0.50.2",
    "peft": "0.21",
    "safetensors": "0.8",
}  # pyproject.toml's
EXTRA_PACKAGES = {"lab": ("matplotlib", "sklearn", "scipy"), "report": ("matplotlib",)}
MIN_FREE_BYTES = 1 << 30  # the embedded model needs 93 MB as it is fetched, 269 MB converted and about 100 MB in 4 bits
THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


@dataclass(frozen=True)
class MachineFacts:
    """What a machine is: versions (None: not installed), bytes, and the environment's variables."""

    versions: dict[str, str | None] = field(default_factory=dict)
    missing: dict[str, list[str]] = field(default_factory=dict)  # extra -> its packages that are not here
    gpu: bool = False  # a driver's nvidia-smi is on the path
    cuda_build: bool = True
    cuda_works: bool = True
    cores: int = 1
    cache: str = ""
    cache_fault: str = ""  # why it cannot be written
    disk: int = MIN_FREE_BYTES  # free
    memory: int = 1 << 40  # available
    swapped: int = 0
    environment: dict[str, str] = field(default_factory=dict)
    numerics: bool = True
    forward: bool = True


def gather_facts(numerics: bool = True, forward: bool = True) -> MachineFacts:
    """The facts of this machine. numerics, forward: whether the doctor's two self-tests are well."""
    import psutil
    import torch

    folder = os.environ.get("ZOEDGE_CACHE") or str(
        Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "zoedge"
    )
    fault, free = "", MIN_FREE_BYTES
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(folder).free
        if not os.access(folder, os.W_OK | os.X_OK):
            fault = "Permission denied"
    except OSError as e:
        fault = e.strerror or str(e)
    from ...scoring.sources import WISH

    asked = {k: os.environ[k] for k in THREAD_VARIABLES if k in os.environ}
    return MachineFacts(
        {name: find_version(name) for name in (*MINIMUM_VERSIONS, "kernels")},
        {
            extra: lost
            for extra, names in EXTRA_PACKAGES.items()
            if (lost := [name for name in names if find_spec(name) is None])
        },
        shutil.which("nvidia-smi") is not None,
        torch.version.cuda is not None,
        torch.cuda.is_available(),
        os.cpu_count() or 1,
        folder,
        fault,
        free,
        psutil.virtual_memory().available,
        psutil.swap_memory().used,
        asked | {"HF_HUB_OFFLINE": WISH},
        numerics,
        forward,
    )


def find_version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def parse_version(text: str) -> tuple[int, ...]:
    """2.13.0+cpu -> (2, 13, 0)."""
    return tuple(int(word) for word in text.partition("+")[0].split(".") if word.isdigit())


def find_hints(facts: MachineFacts) -> list[tuple[str, str]]:
    """(what is in the way, what to type), the gravest first; [] where nothing is."""
    said: list[tuple[str, str]] = []

    def say(wrong: bool, what: str, how: str) -> None:
        if wrong:
            said.append((what, how))

    say(
        not facts.numerics,
        "the arithmetic of replay gives other bits here: logs of this machine are not another's",
        "ATEN_CPU_CAPABILITY=default zoedge doctor     # if that is well, set it for every run; report it in any case",
    )
    say(not facts.forward, "a 4-bit product changes between calls", "zoedge finetune RECIPE model.quantization=none")
    for name, least in MINIMUM_VERSIONS.items():
        here = facts.versions.get(name)
        say(name in facts.versions and here is None, f"{name} is not installed", f"pip install '{name}>={least}'")
        old = here is not None and parse_version(here) < parse_version(least)
        say(
            old,
            f"{name} {here} is older than {least}, with which zoedge is tested",
            f"pip install --upgrade '{name}>={least}'",
        )
    say(
        facts.gpu and not facts.cuda_build,
        "there is a GPU, and this torch is a CPU-only build",
        "pip uninstall torch && pip install torch     # Linux wheels of the package index are CUDA builds",
    )
    say(
        facts.gpu and facts.cuda_build and not facts.cuda_works,
        "there is a GPU, and torch cannot use it",
        "nvidia-smi     # is the driver new enough, and CUDA_VISIBLE_DEVICES not empty?",
    )
    say(
        facts.versions.get("kernels") is not None,
        "the package kernels is installed: bitsandbytes then fetches native code from a hub at import (zoedge forbids it)",
        "pip uninstall kernels",
    )
    away = "export ZOEDGE_CACHE=/a/folder/with/room"
    say(bool(facts.cache_fault), f"the cache folder {facts.cache} cannot be written ({facts.cache_fault})", away)
    say(
        not facts.cache_fault and facts.disk < MIN_FREE_BYTES,
        f"{facts.disk / 2**20:,.0f} MiB are free at {facts.cache}, and a model "
        "of 135 million parameters needs about half a GiB there",
        away,
    )
    for name in THREAD_VARIABLES:
        many = facts.environment.get(name, "")
        few = many.isdigit() and facts.cores > 1 and int(many) < facts.cores
        over = many.isdigit() and int(many) > facts.cores
        say(
            over,
            f"{name} is {many}, and there are {facts.cores} cores: threads wait for each other",
            f"export {name}={facts.cores}",
        )
        say(
            few,
            f"{name} is {many}, and there are {facts.cores} cores",
            f"unset {name}     # or model.threads in the recipe",
        )
    say(
        facts.swapped > facts.memory,
        f"{facts.swapped / 2**30:.1f} GiB are swapped out, more than the "
        f"{facts.memory / 2**30:.1f} GiB of memory that are free: a step may wait for the disk",
        "zoedge finetune RECIPE model.quantization=nf4 train.rows=512     # or end other programs",
    )
    offline = facts.environment.get("HF_HUB_OFFLINE", "0").lower() not in ("", "0", "false", "no", "off")
    say(
        offline,
        "HF_HUB_OFFLINE is set: models and data sets named ORG/NAME come from the hub's cache alone",
        "unset HF_HUB_OFFLINE TRANSFORMERS_OFFLINE     # or name a folder in model.source",
    )
    for extra, names in facts.missing.items():
        say(bool(names), f"{', '.join(names)} not installed (the extra '{extra}')", f"pip install 'zoedge[{extra}]'")
    return said

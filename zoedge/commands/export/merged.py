"""This module writes the export as a plain model folder, with the trained weights merged in."""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ...core.storage import write_durably
from ...core.types import Space
from ...errors import DataError, IdentityError, UsageError
from ...log.packed import AnyLog
from ...recipe.recipe import Recipe
from ...scoring.models.base import DTYPES, Base
from .card import read_tokenizer_files, render_model_card, scrub_config
from .folder import (
    CARD_FILE,
    check_finite,
    check_replaceable,
    describe_export,
    encode_json,
    get_space_word,
    has_adapter,
    list_members,
    read_json,
    replace_folder,
    write_marker,
)
from .peft import encode_tensors
from .whole import file_sums

SHARD_BYTES = 256 << 20  # bytes of a merged file; it is held twice while it is written, as tensors and as bytes

CHUNK_ELEMENTS = 1 << 22  # elements that are compared in float64 at a time

MIN_KEPT_SHARE = 0.5  # the least share of an update that a merge must keep


# -- merged weights


@dataclass(frozen=True)
class MergeResult:
    """What a merge wrote.

    Attributes:
        kept: by module, the share of its update that survived the cast.
        size: of all weights, in bytes.
    """

    folder: Path
    dtype: str
    kept: dict[str, float]
    size: int

    @property
    def least(self) -> tuple[str, float]:
        """The module that kept the least of its update, and the share that it kept."""
        return min(self.kept.items(), key=lambda item: item[1])

    def __str__(self) -> str:
        name, least = self.least
        middle = sorted(self.kept.values())[len(self.kept) // 2]
        return (
            f"{self.dtype}, {self.size / 1e6:,.1f} MB; of its {len(self.kept)} updates, {middle:.4%} (median) "
            f"survive rounding, {least:.4%} at least ({name})"
        )


def write_merged(
    recipe: Recipe,
    space: Space,
    folder: Path,
    dtype: str | None = None,
    force: bool = False,
    base_folder: Path | str | None = None,
    log: AnyLog | None = None,
    steps: int | None = None,
) -> MergeResult:
    """Write the trained weights as a plain model. The base is dequantised to W, and nothing is quantised again.

    W plus its update U (alpha/rank * B A, or trained - base) is computed in float32 and cast to `dtype`, as is every other
    tensor. The base is loaded anew on the CPU, because a used one may give garbage (docs/traps.md). Besides it, memory holds
    one shard (256 MB, or one larger tensor), as tensors and as bytes.

    The share of an update that is kept is 1 - |cast(W + U) - (W + U)| / |U|, in Frobenius norms and float64: 1 if nothing is
    lost (or U = 0), 0 or less if the rounding is as large as the update.

    Args:
        dtype: fp16, bf16 or fp32; None: the type that the space moves weights in, else fp16.
        force: write it although less than half of an update is kept.
        base_folder: where the base is, if not where the recipe says.
        log: whose base this must be.
        steps: after how many steps the space stands.

    Raises:
        DataError: less than half of an update is kept, a value overflows, or the disk is too small.
        IdentityError: the base is not the log's.
        UsageError: `folder` holds something else, or the space changes no weight.
    """
    dtype = check_mergeable(space, dtype)
    check_replaceable(Path(os.path.abspath(folder)))
    base = load_merge_base(recipe, base_folder, log)
    facts = describe_export("merged", recipe, space, base.digest, log, steps) | {"dtype": dtype}
    shards = list(split_into_shards(iter_weights(base.model), DTYPES[dtype].itemsize))
    size = sum(x.numel for shard in shards for x in shard) * DTYPES[dtype].itemsize
    merger = Merger(space, dtype, force)
    merger.expect({x.name: x.shape for shard in shards for x in shard})
    with replace_folder(folder) as draft:
        if (free := shutil.disk_usage(draft).free) < size + (64 << 20):
            raise DataError(f"{folder}: the merged model needs {size / 1e9:.1f} GB, {free / 1e9:.1f} GB are free.")
        files = [
            *build_config_files(base, DTYPES[dtype]),
            *read_tokenizer_files(base.path),
            (CARD_FILE, render_model_card(facts, dtype)),
        ]
        for name, raw in files:
            write_durably(draft / name, raw)
        payloads = write_shards(draft, shards, merger, size)
        names = sorted(p.name for p in draft.iterdir())
        sums = file_sums(draft, names)
        write_marker(draft, {**facts, "payload": payloads, "kept": merger.kept, "files": names, "sha256": sums})
    return MergeResult(folder, dtype, merger.kept, size)


def check_mergeable(space: Space, dtype: str | None) -> str:
    """Return the type to write in. UsageError: the space changes no weight, or there is no such type."""
    for _, member in list_members(space):
        if not member.changes():
            raise UsageError(
                f"The space '{get_space_word(member)}' moves no weight of the base: there is nothing to merge."
            )
    check_finite(space)
    dtype = dtype or choose_dtype(space)
    if dtype not in DTYPES:
        raise UsageError(f"dtype: '{dtype}' is not {', '.join(DTYPES)}.")
    return dtype


def load_merge_base(recipe: Recipe, base_folder: Path | str | None, log: AnyLog | None) -> Base:
    """Load the base anew on the CPU in float32. IdentityError: it is not the log's."""
    from ...scoring.models.loading import load_base

    spec = recipe.model.model_copy(update={"device": "cpu", "compute_dtype": "fp32"})
    base = load_base(spec.model_copy(update={"source": str(base_folder)}) if base_folder else spec)
    if log is not None and base.digest != log.header.base:
        raise IdentityError(
            f"The base in {base.path} is not the one that was trained on (sha256 {log.header.base[:4].hex()}.. -> "
            f"{base.digest[:4].hex()}..)."
        )
    return base


def write_shards(draft: Path, shards: list[list[LazyWeight]], merger: Merger, size: int) -> dict[str, str]:
    """Write the merged weights in files of at most SHARD_BYTES, with their index; returns each payload's digest by file.

    Args:
        size: bytes of all weights together.
    """
    payloads: dict[str, str] = {}
    placed: dict[str, str] = {}
    for i, shard in enumerate(shards):
        name = "model.safetensors" if len(shards) == 1 else f"model-{i + 1:05}-of-{len(shards):05}.safetensors"
        raw, payloads[name] = encode_tensors({x.name: merger(x) for x in shard})
        write_durably(draft / name, raw)
        del raw  # before the next shard is merged: it is as large
        placed |= {x.name: name for x in shard}
    if len(shards) > 1:
        index = {"metadata": {"total_size": size}, "weight_map": placed}
        write_durably(draft / "model.safetensors.index.json", encode_json(index))
    return payloads


def choose_dtype(space: Space) -> str:
    """Return the type in which a space moves 16- or 32-bit weights; fp16 for the other spaces, as models come in it."""
    return next((word for word, kind in DTYPES.items() if str(kind) == f"torch.{space.storage}"), "fp16")


class LazyWeight(NamedTuple):
    """A tensor that is to be written: its name, its shape, and a function that reads it in float32."""

    name: str
    shape: tuple[int, ...]
    read: Callable[[], Tensor]

    @property
    def numel(self) -> int:
        """The number of elements."""
        return int(torch.Size(self.shape).numel())


def iter_weights(model: nn.Module) -> Iterator[LazyWeight]:
    """Yield every parameter once, tied ones under their first name. Weights of Linear modules are dequantised when read."""
    from ...scoring.models.quantised import dequantise_weight

    seen: set[int] = set()
    for prefix, module in model.named_modules():
        for key, value in module.named_parameters(recurse=False):
            if id(value) in seen:
                continue
            seen.add(id(value))
            if isinstance(module, nn.Linear) and key == "weight":
                shape: tuple[int, ...] = (module.out_features, module.in_features)
                yield LazyWeight(f"{prefix}.{key}", shape, partial(dequantise_weight, module))
            else:
                yield LazyWeight(f"{prefix}.{key}", tuple(value.shape), partial(value.data.to, torch.float32))


def split_into_shards(weights: Iterable[LazyWeight], width: int) -> Iterator[list[LazyWeight]]:
    """Group consecutive weights into shards of at most SHARD_BYTES, at `width` bytes an element."""
    shard: list[LazyWeight] = []
    for x in weights:
        if shard and sum(y.numel for y in (*shard, x)) * width > SHARD_BYTES:
            yield shard
            shard = []
        shard.append(x)
    yield shard


class Merger:
    """Adds the updates to weights and casts them; `kept` gets the share of each update that survives."""

    def __init__(self, space: Space, dtype: str, force: bool):
        self.space, self.shapes = space, space.changes()
        self.dtype, self.force = dtype, force
        self.kept: dict[str, float] = {}

    def expect(self, shapes: dict[str, tuple[int, ...]]) -> None:
        """Raise IdentityError unless the base has every adapted module in its shape."""
        for name, shape in self.shapes.items():
            if shapes.get(name) != shape:
                raise IdentityError(f"The base has no {name} of {list(shape)}: it is not the one that was trained on.")

    def __call__(self, x: LazyWeight) -> Tensor:
        value = x.read()
        if x.name in self.shapes:
            name = x.name.removesuffix(".weight")
            changed, update = self.space.merged(x.name, value)
            out = changed.to(DTYPES[self.dtype])
            self.kept[name] = kept = measure_kept_share(value, update, out)
            if kept < MIN_KEPT_SHARE and not self.force:
                apart = ", or keep the adapter apart (--to peft)" if has_adapter(self.space) else ""
                raise DataError(
                    f"In {self.dtype}, {max(0.0, kept):.0%} of the update of {name} survives rounding. Use --dtype "
                    f"fp32{apart}; --force writes it all the same."
                )
        else:
            out = value.to(DTYPES[self.dtype])
        if not bool(out.isfinite().all()):
            raise DataError(f"{x.name} does not fit {self.dtype} (values overflow). Use --dtype fp32.")
        return out.contiguous()


def measure_kept_share(value: Tensor, update: Tensor, out: Tensor) -> float:
    """Return 1 - |out - (value + update)| / |update| of tensors of one shape, in float64, some rows at a time."""
    rows, lost, whole = max(1, CHUNK_ELEMENTS // value[0].numel()), 0.0, 0.0
    for i in range(0, len(value), rows):
        u = update[i : i + rows].double()
        lost += (out[i : i + rows].double() - (value[i : i + rows].double() + u)).square().sum().item()
        whole += u.square().sum().item()
    return 1.0 - math.sqrt(lost / whole) if whole else 1.0


def build_config_files(base: Base, dtype: torch.dtype) -> Iterator[tuple[str, bytes]]:
    """Yield config.json and generation_config.json of an ordinary model that is not quantised, each as (name, bytes)."""
    config = {**read_json(base.path / "config.json"), "dtype": str(dtype).removeprefix("torch.")}
    for key in ("quantization_config", "torch_dtype"):
        config.pop(key, None)
    yield "config.json", encode_json(scrub_config(config))
    if not base.model.can_generate():
        return
    own = base.path / "generation_config.json"
    generation = read_json(own) if own.is_file() else json.loads(base.model.generation_config.to_json_string())
    yield own.name, encode_json(scrub_config(generation))

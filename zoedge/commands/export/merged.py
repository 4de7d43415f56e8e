"""Export as a plain model folder with the trained weights merged in."""

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

SHARD_BYTES = 256 << 20  # bytes of a merged file; it is held twice while it is written, as tensors and as bytes

CHUNK_ELEMENTS = 1 << 22  # elements that are compared in float64 at a time

MIN_KEPT_SHARE = 0.5  # the least share of an update that a merge must keep


# -- merged weights


@dataclass(frozen=True)
class MergeResult:
    """What a merge wrote. kept: the share of each module's update that survived the cast; size: bytes of weights."""

    folder: Path
    dtype: str
    kept: dict[str, float]
    size: int

    @property
    def least(self) -> tuple[str, float]:
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
    """Write the trained weights as a plain model, W dequantised from what was trained on; nothing is quantised again.

    W + alpha/rank * B A, say, is float32, then cast to `dtype` (fp16, bf16, fp32; default: what a space says that it is
    stored in, else fp16), as is every other tensor. The base is loaded anew on
    the CPU (a used one may give garbage, docs/traps.md) and never held twice: besides it, one shard (256 MB, or one
    larger tensor), as tensors and as bytes. base_folder: where the base is, if not where the recipe says. log: whose
    base this must be.

    Of each update U (alpha/rank * B A, or trained - base), in Frobenius norms and float64,
    kept = 1 - |cast(W + U) - (W + U)| / |U|: 1 if nothing is lost (or U = 0), 0 or less if rounding is as large as the
    update. DataError if it is below 0.5 and not `force`, if a value overflows, or the disk is too small. IdentityError:
    the base is not the log's. UsageError: `folder` holds something else.
    """
    from ...scoring.models.loading import load_base

    for _, member in list_members(space):
        if not member.changes():
            raise UsageError(
                f"The space '{get_space_word(member)}' moves no weight of the base: there is nothing to merge."
            )
    check_finite(space)
    dtype = dtype or choose_dtype(space)
    if dtype not in DTYPES:
        raise UsageError(f"dtype: '{dtype}' is not {', '.join(DTYPES)}.")
    check_replaceable(Path(os.path.abspath(folder)))
    spec = recipe.model.model_copy(update={"device": "cpu", "compute_dtype": "fp32"})
    base = load_base(spec.model_copy(update={"source": str(base_folder)}) if base_folder else spec)
    if log is not None and base.digest != log.header.base:
        raise IdentityError(
            f"The base in {base.path} is not the one that was trained on (sha256 {log.header.base[:4].hex()}.. -> "
            f"{base.digest[:4].hex()}..)."
        )
    facts = describe_export("merged", recipe, space, base.digest, log, steps)
    facts["dtype"] = dtype
    shards = list(split_into_shards(iter_weights(base.model), DTYPES[dtype].itemsize))
    size = sum(x.numel for shard in shards for x in shard) * DTYPES[dtype].itemsize
    merge = Merger(space, dtype, force)
    merge.expect({x.name: x.shape for shard in shards for x in shard})
    payloads: dict[str, str] = {}
    placed: dict[str, str] = {}
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
        for i, shard in enumerate(shards):
            name = "model.safetensors" if len(shards) == 1 else f"model-{i + 1:05}-of-{len(shards):05}.safetensors"
            raw, payloads[name] = encode_tensors({x.name: merge(x) for x in shard})
            write_durably(draft / name, raw)
            del raw
            placed |= {x.name: name for x in shard}
        if len(shards) > 1:
            index = {"metadata": {"total_size": size}, "weight_map": placed}
            write_durably(draft / "model.safetensors.index.json", encode_json(index))
        names = sorted(p.name for p in draft.iterdir())
        write_marker(draft, {**facts, "payload": payloads, "kept": merge.kept, "files": names})
    return MergeResult(folder, dtype, merge.kept, size)


def choose_dtype(space: Space) -> str:
    """The type that loses nothing of a space that moves 16 or 32-bit weights; fp16 for the others, as models come."""
    return next((word for word, kind in DTYPES.items() if str(kind) == f"torch.{space.storage}"), "fp16")


class LazyWeight(NamedTuple):
    """A tensor to be written: its shape, and how to get it in float32."""

    name: str
    shape: tuple[int, ...]
    read: Callable[[], Tensor]

    @property
    def numel(self) -> int:
        return int(torch.Size(self.shape).numel())


def iter_weights(model: nn.Module) -> Iterator[LazyWeight]:
    """Every parameter once, tied ones under their first name, those of Linear modules dequantised when read."""
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


def split_into_shards(found: Iterable[LazyWeight], width: int) -> Iterator[list[LazyWeight]]:
    """Consecutive weights of at most SHARD bytes together, `width` bytes an element."""
    shard: list[LazyWeight] = []
    for x in found:
        if shard and sum(y.numel for y in (*shard, x)) * width > SHARD_BYTES:
            yield shard
            shard = []
        shard.append(x)
    yield shard


class Merger:
    """Adds the updates and casts; `kept` fills as it goes."""

    def __init__(self, space: Space, dtype: str, force: bool):
        self.space, self.shapes = space, space.changes()
        self.dtype, self.force = dtype, force
        self.kept: dict[str, float] = {}

    def expect(self, found: dict[str, tuple[int, ...]]) -> None:
        """IdentityError unless the base has every adapted module, in its shape."""
        for name, shape in self.shapes.items():
            if found.get(name) != shape:
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
    """1 - |out - (value + update)| / |update|, in float64, some rows at a time. The same shape each."""
    rows, lost, whole = max(1, CHUNK_ELEMENTS // value[0].numel()), 0.0, 0.0
    for i in range(0, len(value), rows):
        u = update[i : i + rows].double()
        lost += (out[i : i + rows].double() - (value[i : i + rows].double() + u)).square().sum().item()
        whole += u.square().sum().item()
    return 1.0 - math.sqrt(lost / whole) if whole else 1.0


def build_config_files(base: Base, dtype: torch.dtype) -> Iterator[tuple[str, bytes]]:
    """config.json and generation_config.json of an ordinary, unquantised model."""
    config = {**read_json(base.path / "config.json"), "dtype": str(dtype).removeprefix("torch.")}
    for key in ("quantization_config", "torch_dtype"):
        config.pop(key, None)
    yield "config.json", encode_json(scrub_config(config))
    if not base.model.can_generate():
        return
    own = base.path / "generation_config.json"
    said = read_json(own) if own.is_file() else json.loads(base.model.generation_config.to_json_string())
    yield own.name, encode_json(scrub_config(said))

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
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ...core.storage import write_durably
from ...errors import DataError, IdentityError, UsageError
from ...recipe.recipe import Recipe
from ...scoring.models.base import DTYPES, Base
from .card import card, scrubbed, tokenizer_files
from .folder import CARD, about, adapts, finite, mark, members, replaceable, replacing, table, text, word
from .peft import serialised

SHARD = 256 << 20  # bytes of a merged file; it is held twice while it is written, as tensors and as bytes

ROWS = 1 << 22  # elements that are compared in float64 at a time

KEPT = 0.5  # the least share of an update that a merge must keep


# -- merged weights


@dataclass(frozen=True)
class Merge:
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


def merged(
    recipe: Recipe, space: Any, folder: Path, dtype: str | None = None, force: bool = False,
    base_folder: Path | str | None = None, log: Any = None, steps: int | None = None,
) -> Merge:  # fmt: skip
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
    from ...scoring.models.loading import load

    for _, member in members(space):
        if not hasattr(member, "merged"):
            raise UsageError(f"The space '{word(member)}' moves no weight of the base: there is nothing to merge.")
    finite(space)
    dtype = dtype or stored_in(space)
    if dtype not in DTYPES:
        raise UsageError(f"dtype: '{dtype}' is not {', '.join(DTYPES)}.")
    replaceable(Path(os.path.abspath(folder)))
    spec = recipe.model.model_copy(update={"device": "cpu", "compute_dtype": "fp32"})
    base = load(spec.model_copy(update={"source": str(base_folder)}) if base_folder else spec)
    if log is not None and base.digest != log.header.base:
        raise IdentityError(
            f"The base in {base.path} is not the one that was trained on (sha256 {log.header.base[:4].hex()}.. -> "
            f"{base.digest[:4].hex()}..)."
        )
    facts = about("merged", recipe, space, base.digest, log, steps)
    facts["dtype"] = dtype
    shards = list(sharded(weights(base.model), DTYPES[dtype].itemsize))
    size = sum(x.numel for shard in shards for x in shard) * DTYPES[dtype].itemsize
    merge = Merger(space, dtype, force)
    merge.expect({x.name: x.shape for shard in shards for x in shard})
    payloads: dict[str, str] = {}
    placed: dict[str, str] = {}
    with replacing(folder) as draft:
        if (free := shutil.disk_usage(draft).free) < size + (64 << 20):
            raise DataError(f"{folder}: the merged model needs {size / 1e9:.1f} GB, {free / 1e9:.1f} GB are free.")
        files = [*plain_config(base, DTYPES[dtype]), *tokenizer_files(base.path), (CARD, card(facts, dtype))]
        for name, raw in files:
            write_durably(draft / name, raw)
        for i, shard in enumerate(shards):
            name = "model.safetensors" if len(shards) == 1 else f"model-{i + 1:05}-of-{len(shards):05}.safetensors"
            raw, payloads[name] = serialised({x.name: merge(x) for x in shard})
            write_durably(draft / name, raw)
            del raw
            placed |= {x.name: name for x in shard}
        if len(shards) > 1:
            index = {"metadata": {"total_size": size}, "weight_map": placed}
            write_durably(draft / "model.safetensors.index.json", text(index))
        names = sorted(p.name for p in draft.iterdir())
        mark(draft, {**facts, "payload": payloads, "kept": merge.kept, "files": names})
    return Merge(folder, dtype, merge.kept, size)


def stored_in(space: Any) -> str:
    """The type that loses nothing of a space that moves 16 or 32-bit weights; fp16 for the others, as models come."""
    return next(
        (word for word, kind in DTYPES.items() if str(kind) == f"torch.{getattr(space, 'storage', '')}"), "fp16"
    )


class Weight(NamedTuple):
    """A tensor to be written: its shape, and how to get it in float32."""

    name: str
    shape: tuple[int, ...]
    read: Callable[[], Tensor]

    @property
    def numel(self) -> int:
        return int(torch.Size(self.shape).numel())


def weights(model: nn.Module) -> Iterator[Weight]:
    """Every parameter once, tied ones under their first name, those of Linear modules dequantised when read."""
    from ...scoring.models.quantised import weight_of

    seen: set[int] = set()
    for prefix, module in model.named_modules():
        for key, value in module.named_parameters(recurse=False):
            if id(value) in seen:
                continue
            seen.add(id(value))
            if isinstance(module, nn.Linear) and key == "weight":
                shape: tuple[int, ...] = (module.out_features, module.in_features)
                yield Weight(f"{prefix}.{key}", shape, partial(weight_of, module))
            else:
                yield Weight(f"{prefix}.{key}", tuple(value.shape), partial(value.data.to, torch.float32))


def sharded(found: Iterable[Weight], width: int) -> Iterator[list[Weight]]:
    """Consecutive weights of at most SHARD bytes together, `width` bytes an element."""
    shard: list[Weight] = []
    for x in found:
        if shard and sum(y.numel for y in (*shard, x)) * width > SHARD:
            yield shard
            shard = []
        shard.append(x)
    yield shard


class Merger:
    """Adds the updates and casts; `kept` fills as it goes."""

    def __init__(self, space: Any, dtype: str, force: bool):
        self.space, self.shapes = space, space.changes()
        self.dtype, self.force = dtype, force
        self.kept: dict[str, float] = {}

    def expect(self, found: dict[str, tuple[int, ...]]) -> None:
        """IdentityError unless the base has every adapted module, in its shape."""
        for name, shape in self.shapes.items():
            if found.get(name) != shape:
                raise IdentityError(f"The base has no {name} of {list(shape)}: it is not the one that was trained on.")

    def __call__(self, x: Weight) -> Tensor:
        value = x.read()
        if x.name in self.shapes:
            name = x.name.removesuffix(".weight")
            changed, update = self.space.merged(x.name, value)
            out = changed.to(DTYPES[self.dtype])
            self.kept[name] = kept = survived(value, update, out)
            if kept < KEPT and not self.force:
                apart = ", or keep the adapter apart (--to peft)" if adapts(self.space) else ""
                raise DataError(
                    f"In {self.dtype}, {max(0.0, kept):.0%} of the update of {name} survives rounding. Use --dtype "
                    f"fp32{apart}; --force writes it all the same."
                )
        else:
            out = value.to(DTYPES[self.dtype])
        if not bool(out.isfinite().all()):
            raise DataError(f"{x.name} does not fit {self.dtype} (values overflow). Use --dtype fp32.")
        return out.contiguous()


def survived(value: Tensor, update: Tensor, out: Tensor) -> float:
    """1 - |out - (value + update)| / |update|, in float64, some rows at a time. The same shape each."""
    rows, lost, whole = max(1, ROWS // value[0].numel()), 0.0, 0.0
    for i in range(0, len(value), rows):
        u = update[i : i + rows].double()
        lost += (out[i : i + rows].double() - (value[i : i + rows].double() + u)).square().sum().item()
        whole += u.square().sum().item()
    return 1.0 - math.sqrt(lost / whole) if whole else 1.0


def plain_config(base: Base, dtype: torch.dtype) -> Iterator[tuple[str, bytes]]:
    """config.json and generation_config.json of an ordinary, unquantised model."""
    config = {**table(base.path / "config.json"), "dtype": str(dtype).removeprefix("torch.")}
    for key in ("quantization_config", "torch_dtype"):
        config.pop(key, None)
    yield "config.json", text(scrubbed(config))
    if not base.model.can_generate():
        return
    own = base.path / "generation_config.json"
    said = table(own) if own.is_file() else json.loads(base.model.generation_config.to_json_string())
    yield own.name, text(scrubbed(said))

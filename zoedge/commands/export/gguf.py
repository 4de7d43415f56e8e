"""This module writes a LoRA adapter as a GGUF file, which llama.cpp loads beside a LLaMA or Mistral base.

    general.type adapter, general.architecture llama, adapter.type lora, adapter.lora.alpha     llama.cpp's keys
    zoedge.base, zoedge.state, zoedge.log                                                       what it is of
    blk.N.attn_q.weight.lora_a [rank, in], .lora_b [out, rank], ...                             float32

llama.cpp turns neighbouring elements of a head, transformers the two halves of it. A base in GGUF therefore has the rows
of q_proj and k_proj in another order, and so has their lora_b; lora_a reads the same inputs.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gguf
import torch
from torch import Tensor, nn

from ...core.storage import write_durably
from ...core.types import Space
from ...errors import DamagedError, StorageError, UsageError
from ...log.packed import AnyLog
from ...methods.spaces.aligned import AlignedSpace
from ...methods.spaces.lora import LoraSpace
from ...recipe.recipe import Recipe
from ...recipe.sections import Model
from .folder import check_exportable, describe_export, get_options

if TYPE_CHECKING:
    from transformers import PretrainedConfig

SUPPORTED_FAMILIES = ("llama", "mistral")

STATE_KEY = b"zoedge.state"

HEADER_BYTES = 4096  # bytes of a file in which our key stands

MAX_DIFFERENCE = 1e-6  # the largest difference of a weight that a check accepts


def write_gguf(
    space: Space, log: AnyLog, recipe: Recipe, config: PretrainedConfig, path: Path, steps: int | None = None
) -> Path:
    """Write the LoRA adapter at its current value.

    Args:
        config: the base model's.
        log: the run's log, whose base and fingerprint the file names.
        steps: after how many steps the space stands; None: as `describe_export` finds it.

    Raises:
        UsageError: it is no LoRA adapter, its family is stored in another way, or something else stands at `path`.
        StorageError: the disk refuses.
    """
    if not isinstance(space, (LoraSpace, AlignedSpace)):
        raise UsageError("llama.cpp loads LoRA adapters alone: a run of another space has no GGUF file.")
    if config.model_type not in SUPPORTED_FAMILIES:
        raise UsageError(
            f"Model family '{config.model_type}': a GGUF adapter is written for {' and '.join(SUPPORTED_FAMILIES)} alone. "
            "Use --to peft."
        )
    check_exportable(space)
    check_replaceable(path)
    settings = get_options(space).peft(space.describe())
    modules = [name.removesuffix(".lora_A") for name, _ in space.tensors() if name.endswith(".lora_A")]
    facts = describe_export("gguf-lora", recipe, space, log.header.base, log, steps)
    with tempfile.TemporaryDirectory() as draft:
        writer = gguf.GGUFWriter(Path(draft) / "adapter.gguf", "llama")
        for key in ("base", "state", "log"):
            writer.add_string(f"zoedge.{key}", facts[key])
        writer.add_type(gguf.GGUFType.ADAPTER)
        writer.add_name(recipe.name)
        writer.add_string(gguf.Keys.Adapter.TYPE, "lora")
        writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, float(settings["lora_alpha"]))
        matrices = dict(space.tensors())
        for module, name in map_tensor_names(modules, config).items():
            a, b = (matrices[f"{module}.lora_{which}"].detach().cpu() for which in "AB")
            writer.add_tensor(f"{name}.lora_a", a.contiguous().numpy())
            writer.add_tensor(f"{name}.lora_b", permute_rows(b, module, config).contiguous().numpy())
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as e:
            raise StorageError(f"{path}: cannot write there: {e.strerror}. Name another file.") from e
        write_durably(path, (Path(draft) / "adapter.gguf").read_bytes())
    return path


def check_replaceable(path: Path) -> None:
    """Raise UsageError unless nothing is there, or a file that `write_gguf` made."""
    if path.is_symlink() or (path.exists() and not path.is_file()):
        raise UsageError(f"{path} is there and is not a file. Name another one.")
    if path.exists():
        with path.open("rb") as file:
            front = file.read(HEADER_BYTES)
        if not front.startswith(b"GGUF") or STATE_KEY not in front:
            raise UsageError(f"{path} is there and is not a GGUF adapter of zoedge. Name another file.")


def map_tensor_names(modules: Iterable[str], config: PretrainedConfig) -> dict[str, str]:
    """Return llama.cpp's name of every module's weight. UsageError: it has none for a module."""
    known = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    names = {module: known.get_name(f"{module}.weight", (".weight",)) for module in modules}
    if unknown := [module for module, name in names.items() if name is None]:
        raise UsageError(f"llama.cpp has no name for {unknown[0]}. Use --to peft.")
    return names  # type: ignore[return-value]


def permute_rows(rows: Tensor, module: str, config: PretrainedConfig) -> Tensor:
    """Return a module's rows [out, n] in llama.cpp's order: the two halves of each head of q and k take turns."""
    which = module.rpartition(".")[2]
    if which not in ("q_proj", "k_proj"):
        return rows
    heads = config.num_attention_heads if which == "q_proj" else config.num_key_value_heads
    return rows.unflatten(0, (heads, 2, -1)).transpose(1, 2).reshape(rows.shape)


@torch.inference_mode()
def measure_difference(path: str, spec: dict[str, Any], known: dict[str, Tensor]) -> float:
    """Return the largest |W' + scale' B' A' - P(W + scale B A)| of all modules, in float64.

    P puts rows into llama.cpp's order, and W' is P W. B', A' and scale' are the file's. W is a newly loaded base's, and `known`
    holds A, B and scale of the trained space. DamagedError: the file has other tensors.
    """
    from ...scoring.models.loading import load_base
    from ...scoring.models.quantised import dequantise_weight

    reader = gguf.GGUFReader(path)
    alpha = reader.get_field(gguf.Keys.Adapter.LORA_ALPHA)
    stored = {tensor.name: torch.from_numpy(tensor.data.copy()).double() for tensor in reader.tensors}
    base, scale, largest = load_base(Model(**spec)), known["scale"], 0.0
    config = base.model.config
    modules = map_tensor_names([name.removesuffix(".lora_A") for name in known if name.endswith(".lora_A")], config)
    if alpha is None or stored.keys() != {f"{name}.lora_{which}" for name in modules.values() for which in "ab"}:
        raise DamagedError(f"{os.path.basename(path)}: not the tensors that were trained.")
    for module, name in modules.items():
        linear = base.model.get_submodule(module)
        assert isinstance(linear, nn.Linear), "only these have a LoRA adapter"
        weight = dequantise_weight(linear).double().cpu()
        a, b = (known[f"{module}.lora_{which}"].double() for which in "AB")
        theirs_a, theirs_b = (stored[f"{name}.lora_{which}"] for which in "ab")
        theirs = permute_rows(weight, module, config) + alpha.contents() / theirs_b.shape[1] * (theirs_b @ theirs_a)
        largest = max(largest, float((theirs - permute_rows(weight + scale * (b @ a), module, config)).abs().max()))
    return largest

"""This module reads the shape of a model (layers, widths, types) from its files, without reading a weight."""

from __future__ import annotations

import math
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...errors import DataError
from ...recipe.sections import Model

if TYPE_CHECKING:
    from transformers import PretrainedConfig

    from ...scoring.models.base import Base

# Copies, so that nothing heavy is imported; tests compare the first four with their owners.
HEAD_COLUMNS = 8192  # columns of the head in one chunk of logits: scoring/models/base.py
FORWARD_TOKENS = 2048  # token rows of a forward pass over held-out rows: scoring/tasks/_training.py
PIECE_ELEMENTS = 1 << 19  # elements of the pieces in which `space: full` moves: methods/spaces/full.py
KEPT_BYTES = 1 << 28  # of dequantised weights that are kept: scoring/models/quantised.py
QUANTISED_BLOCK = 64  # weights that share a scale in 4 bits: bitsandbytes

MAX_LAYERS = 1000  # building a model of more takes too long

TYPE_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}

SAFETENSORS_TYPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}  # the name in a header -> torch's name

PACKAGED_CONFIGS: dict[str, dict[str, Any]] = {  # config.json of packaged models that may not have been fetched yet
    "smollm2-135m-instruct": {
        "model_type": "llama",
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "vocab_size": 49152,
        "max_position_embeddings": 8192,
        "tie_word_embeddings": True,
        "dtype": "float16",
    }
}


@dataclass(frozen=True)
class ModelShape:
    """The shape of a model: how many elements it has of each kind, and the widths that its activations have.

    Sizes are counted in elements, unless a name says otherwise.
    """

    # (name, outputs, inputs) of the Linear modules, which quantisation changes
    linears: tuple[tuple[str, int, int], ...]
    table_elements: int  # of the tables of tokens; a head that is tied to the embedding counts once
    vocabulary: int  # tokens
    other_elements: int  # of norms, biases and positions
    stored_type: str  # the type in the source's files: a key of TYPE_BYTES
    layers: int
    hidden_width: int
    inner_width: int  # of the hidden layer inside a block
    query_width: int  # of all heads together
    key_width: int  # of all groups together
    is_gated: bool  # the hidden layer is the product of two projections
    rotary: bool  # positions are rotations of queries and keys
    context: int  # tokens of a sequence at most
    meta_base: Base  # the model without data, which a space's `describe` asks
    folder: Path | None = None  # where its files lie; None: they are not fetched yet

    @property
    def stored_itemsize(self) -> int:
        """The bytes of an element in the source's files."""
        return TYPE_BYTES[self.stored_type]

    @property
    def elements(self) -> int:
        """All weights of the model."""
        return sum(out * wide for _, out, wide in self.linears) + self.table_elements + self.other_elements

    @property
    def largest_linear(self) -> int:
        """The elements of the largest Linear module."""
        return max(out * wide for _, out, wide in self.linears)


def find_config_folder(source: str, revision: str | None) -> Path | None:
    """Return the folder with a model's config.json; None: a packaged model that has not been fetched yet.

    Of a model named by a hub id, only config.json is downloaded. DataError: there is no such source.
    """
    from ...scoring.sources import cache, catalog, hub, resolve

    if source in catalog.PACKAGED_MODELS:
        folder = cache.cache_folder("models") / source
        return folder if folder.is_dir() else None
    if hub.HUB_ID_PATTERN.fullmatch(source) and not Path(os.path.expanduser(source)).exists():
        return hub.download_snapshot("model", source, revision, ["config.json"])
    return resolve.resolve_model(source, revision)


def read_model_shape(model: Model) -> ModelShape:
    """Return the shape of the model that a recipe's `model` section names.

    DataError: there is no such source, config.json is missing or malformed, or the family is not supported.
    """
    import torch
    import transformers
    from transformers.initialization import no_init_weights

    from ...scoring.models import base, checkpoint, families, loading

    device = loading.resolve_device(model)
    folder = find_config_folder(model.source, model.revision)
    if folder is None:
        table = dict(PACKAGED_CONFIGS[model.source])
        config: Any = transformers.AutoConfig.for_model(table.pop("model_type"), **table)
    else:
        if any(p.suffix == ".safetensors" for p in folder.iterdir()):  # of a hub id, only config.json may be here
            checkpoint.check_files(folder)
        with checkpoint.translate_errors(folder):
            config = transformers.AutoConfig.from_pretrained(
                str(folder), local_files_only=True, trust_remote_code=False
            )
    family = families.load_family(config)
    if config.num_hidden_layers > MAX_LAYERS:
        raise DataError(f"model.source: config.json says {config.num_hidden_layers:,} layers.")
    with checkpoint.translate_errors(folder or Path(model.source)), torch.device("meta"), no_init_weights():
        empty: Any = getattr(transformers, f"AutoModelFor{family.HEAD}").from_config(config)
        empty.tie_weights()
    no_tokenizer: Any = None  # only shapes are asked
    meta = base.Base(empty, no_tokenizer, family, loading.resolve_dtype(model, device), device, b"", folder or Path())
    return read_base_shape(meta, find_stored_type(folder, config), folder)


def read_base_shape(base: Base, stored_type: str, folder: Path | None = None) -> ModelShape:
    """Return the shape of a model, whose tensors may be without data.

    Args:
        stored_type: the type of the source's files.
        folder: where they lie.
    """
    from torch import nn

    model: Any = base.model
    config = model.config
    embedding, head = model.get_input_embeddings().weight, model.get_output_embeddings().weight
    linears = tuple(
        (name, m.out_features, m.in_features)
        for name, m in model.named_modules()
        if isinstance(m, nn.Linear) and m is not model.get_output_embeddings()
    )
    tables = embedding.numel() + (0 if head is embedding else head.numel())
    first = f"{base.facts.BLOCKS}.0."
    inside = {name.removeprefix(first): max(out, wide) for name, out, wide in linears if name.startswith(first)}
    outside = [size for name, size in inside.items() if not re.search("attn|attention.(self|query|dense)", name)]
    _, groups, size = base.keys_shape()
    return ModelShape(
        linears=linears,
        table_elements=tables,
        vocabulary=len(embedding),
        stored_type=stored_type,
        other_elements=sum(p.numel() for p in model.parameters())
        - tables
        - sum(out * wide for _, out, wide in linears),
        layers=len(base.blocks),
        hidden_width=config.hidden_size,
        inner_width=max(outside),
        query_width=config.num_attention_heads * size,
        key_width=groups * size,
        is_gated=any("gate_proj" in name for name in inside),
        rotary=hasattr(config, "rope_parameters"),
        context=base.context_length,
        meta_base=base,
        folder=folder,
    )


def find_stored_type(folder: Path | None, config: PretrainedConfig) -> str:
    """Return the type that most elements of the safetensors files have; without files, the type that config.json names."""
    from ...scoring.models.checkpoint import HEADER_LIMIT, parse_header

    sizes: dict[str, int] = {}
    for path in sorted(folder.glob("*.safetensors")) if folder else ():
        with path.open("rb") as file:
            length = path.stat().st_size
            header, _ = parse_header(file.read(min(length, HEADER_LIMIT + 8)), length)
        for name, tensor in header.items():
            if name != "__metadata__":
                sizes[tensor["dtype"]] = sizes.get(tensor["dtype"], 0) + math.prod(tensor["shape"])
    word = max(sizes, key=sizes.__getitem__) if sizes else str(getattr(config, "dtype", "")).removeprefix("torch.")
    word = SAFETENSORS_TYPES.get(word, word)
    return word if word in TYPE_BYTES else "float16"

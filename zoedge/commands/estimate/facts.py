"""The shape of a model (layers, widths, bytes), read from its files without reading a weight."""

from __future__ import annotations

import math
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...errors import DataError

HEAD_COLUMNS, FORWARD_TOKENS, PIECE_ELEMENTS, QUANTISED_BLOCK = (
    8192,
    2048,
    1 << 19,
    64,
)  # of models.base, tasks, spaces.full and bitsandbytes: tests compare

MAX_LAYERS = 1000  # building more would not end

TYPE_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}

SAFETENSORS_TYPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}  # of safetensors

PACKAGED_CONFIGS = {  # config.json of a model that is yet to be fetched
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


# -- facts


@dataclass(frozen=True)
class ModelShape:
    """Of a model, in elements. linears: (name, out, in) of what is quantised; tables: of tokens (a tied head once).

    other_elements: norms, biases, positions. kind: the type of the source's files. inner, query, key: widths of a block's
    hidden layer, of q, and of k. gated: two products make the hidden layer. context: tokens of a sequence at most.
    """

    linears: tuple[tuple[str, int, int], ...]
    table_elements: int
    vocabulary: int
    other_elements: int
    stored_type: str
    layers: int
    hidden_width: int
    inner_width: int
    query_width: int
    key_width: int
    is_gated: bool
    rotary: bool
    context: int
    meta_base: Any = None  # models.base.Base of the model without data: what attaching asks of it
    folder: Path | None = None  # where its files lie, if they are here

    @property
    def stored_itemsize(self) -> int:
        """Bytes an element of the source's files."""
        return TYPE_BYTES[self.stored_type]

    @property
    def elements(self) -> int:
        return sum(out * wide for _, out, wide in self.linears) + self.table_elements + self.other_elements

    @property
    def largest_linear(self) -> int:
        return max(out * wide for _, out, wide in self.linears)


def find_config_folder(source: str, revision: str | None) -> Path | None:
    """The folder with config.json of a model; of a hub id, that file alone is fetched. None: a packaged model not yet here.

    DataError: no such source.
    """
    from ...scoring.sources import cache, catalog, hub, resolve

    if source in catalog.PACKAGED_MODELS:
        folder = cache.cache_folder("models") / source
        return folder if folder.is_dir() else None
    if hub.HUB_ID_PATTERN.fullmatch(source) and not Path(os.path.expanduser(source)).exists():
        return hub.download_snapshot("model", source, revision, ["config.json"])
    return resolve.resolve_model(source, revision)


def read_model_shape(model: Any) -> ModelShape:
    """The facts of a recipe's model section. DataError: no such source, no or an odd config.json, an unknown family."""
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
        if any(p.suffix == ".safetensors" for p in folder.iterdir()):  # of a hub id, config.json may be here alone
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
    here = base.Base(empty, None, family, loading.resolve_dtype(model, device), device, b"", folder or Path())
    return read_base_shape(here, find_stored_type(folder, config), folder)


def read_base_shape(base: Any, kind: str, folder: Path | None = None) -> ModelShape:
    """The facts of a model (models.base.Base) whose tensors may be without data."""
    from torch import nn

    model, config = base.model, base.model.config
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
        stored_type=kind,
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


def find_stored_type(folder: Path | None, config: Any) -> str:
    """The type of a model's files: the commonest in their headers, else what config.json says."""
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

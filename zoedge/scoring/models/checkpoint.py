"""This module checks the files of a model folder before a library loads them, and computes digests that identify them."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from ...core.canonical import encode_canonical
from ...errors import DataError, ZoedgeError, is_out_of_memory, make_printable
from ...recipe.sections import Model
from ..sources.file_digests import file_sha256
from ..sources.pickles import explain_conversion
from ..sources.pointers import check_pointer
from .families import load_family
from .libraries import LIBRARY_LOCK

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

WEIGHT_SUFFIXES = (".safetensors",)
ADAPTER_FILE = "adapter_config.json"  # PEFT's

HEADER_LIMIT = 8 << 20  # bytes of config.json, and of the header of a safetensors file
TENSOR_LIMIT = 100_000  # tensors in a safetensors file: 300,000 empty ones took the library 7 s
LAYER_LIMIT = 1000  # layers that config.json may name, unless the weights have more tensors than that

# what a configuration may say where transformers would otherwise load code, such as a kernel from the hub
ATTENTIONS = (None, "eager", "sdpa", "flash_attention_2", "flash_attention_3", "flex_attention")
EXPERTS = (None, "eager", "grouped_mm", "batched_mm")
CODE_KEYS: dict[str, tuple[Any, ...]] = {
    **dict.fromkeys(("attn_implementation", "_attn_implementation", "_attn_implementation_internal"), ATTENTIONS),
    **dict.fromkeys(("experts_implementation", "_experts_implementation", "_experts_implementation_internal"), EXPERTS),
    "quant_method": (None, "bitsandbytes", "gptq", "awq"),
    "use_kernels": (None, False),
    "kernel_config": (None,),
    "custom_generate": (None,),
    "transformers_weights": (None,),
}
SIZE_KEYS = (
    "num_hidden_layers",
    "hidden_size",
    "num_attention_heads",
    "num_key_value_heads",
    "max_position_embeddings",
    "vocab_size",
    "intermediate_size",
    "ffn_dim",
    "word_embed_proj_dim",
    "head_dim",
)

# the other files of a model folder that transformers reads: they decide tokens, generation, and which tensor is in which shard
OTHER_FILES = re.compile(
    r"(tokenizer|special_tokens_map|added_tokens|vocab|merges|spiece|sentencepiece|chat_template|generation_config"
    r"|model\.safetensors\.index).*\.(json|txt|model|jinja)"
)

# how files begin that torch.save, pickle, HDF5 and gzip write
PICKLE_PREFIXES = (b"PK", b"\x80\2", b"\x80\3", b"\x80\4", b"\x80\5", b"\x89HDF", b"\x1f\x8b")


def base_identity(folder: Path, spec: Model) -> bytes:
    """Return the SHA-256 of a base: of the sorted (name, size, sha256) of configuration and weights, and the quantisation."""
    files = sorted(p for p in folder.iterdir() if p.suffix in WEIGHT_SUFFIXES or p.name == "config.json")
    manifest = [[p.name, p.stat().st_size, file_sha256(p)] for p in files]
    scheme = [spec.quantization, spec.double_quant and spec.quantization in ("nf4", "fp4")]
    return hashlib.sha256(encode_canonical([manifest, scheme])).digest()


def other_digests(folder: Path) -> dict[str, str]:
    """Return half the SHA-256, in hexadecimal, of each file of a model folder that `base_identity` leaves out, by its name."""
    files = [path for path in folder.iterdir() if OTHER_FILES.fullmatch(path.name)]
    files += (folder / "additional_chat_templates").glob("*.jinja")
    return {path.relative_to(folder).as_posix(): file_sha256(path)[:32] for path in sorted(files)}


def tokenizer_digest(tokenizer: PreTrainedTokenizerBase) -> bytes:
    """Return the SHA-256 of what decides token ids: the tokenizer's own file, the special tokens, the chat template."""
    backend = tokenizer.backend_tokenizer.to_str()
    special = {k: str(v) for k, v in tokenizer.special_tokens_map.items()}
    return hashlib.sha256(encode_canonical([backend, special, tokenizer.chat_template or ""])).digest()


def check_files(folder: Path) -> None:
    """Check a model folder as far as that is possible before transformers reads it.

    DataError: it has no valid config.json, is of an unknown family, has the head of a classifier, or has no valid safetensors
    weights.
    """
    if not (folder / "config.json").exists():
        raise DataError(f"model.source: {folder} has no config.json: not a model folder.{describe_folder(folder)}")
    for path in folder.iterdir():  # reading a pipe would wait, and /dev/zero never ends
        if path.suffix in (*WEIGHT_SUFFIXES, ".json", ".txt", ".model", ".jinja"):
            if not path.is_file():
                raise DataError(f"model.source: {path} is not a regular file. Use a complete checkpoint.")
            check_pointer(path, f"model.source: {path}")
    if (folder / ADAPTER_FILE).exists():  # transformers would apply it to the weights without a word
        raise DataError(
            f"model.source: {folder} holds an adapter ({ADAPTER_FILE}) beside the model. Take the adapter's files out, or "
            "merge it into the model first (peft's merge_and_unload) and name the merged model."
        )
    try:
        with (folder / "config.json").open("rb") as file:
            raw = file.read(HEADER_LIMIT + 1)
        parsed = json.loads(raw) if len(raw) <= HEADER_LIMIT else None
    except (ValueError, RecursionError) as e:
        raise DataError(f"model.source: {folder}/config.json is not valid JSON: {make_printable(str(e))}") from None
    config: dict[str, Any] = parsed if isinstance(parsed, dict) else {}
    load_family(SimpleNamespace(model_type=config.get("model_type")))  # which is None where config.json is no table
    architectures = str(config.get("architectures"))
    if "Classification" in architectures:
        raise DataError(
            f"model.source: {folder} was saved as {make_printable(architectures)}, whose head is of one task's classes. "
            "zoedge scores words with the language model's own head: name the pretrained checkpoint."
        )
    check_quantisation(folder, config)
    check_config(folder, config)
    if not any(p.suffix == ".safetensors" for p in folder.iterdir()):
        raise DataError(f"model.source: {folder} has no .safetensors weights.{describe_folder(folder)}")
    check_weights(folder, config)


def check_config(folder: Path, config: dict[str, Any]) -> None:
    """Raise DataError if a configuration asks for code from elsewhere, or says a size that no model has.

    transformers takes the name of a kernel on the hub for some keys, in nested tables too, and imports what it downloads.
    """
    tables = [config]
    while tables:
        table = tables.pop()
        tables += [value for value in table.values() if isinstance(value, dict)]
        for key, allowed in CODE_KEYS.items():
            if key in table and table[key] not in allowed:
                known = ", ".join(str(value) for value in allowed if value is not None)
                raise DataError(
                    f"model.source: {folder}/config.json: {key}: {make_printable(repr(table[key]))} may load code from "
                    f"elsewhere, and zoedge loads none. Remove the key{f', or choose {known}' if known else ''}."
                )
        for key in SIZE_KEYS:
            if isinstance(table.get(key), int) and table[key] < 1:
                raise DataError(
                    f"model.source: {folder}/config.json says {key}: {table[key]}, which must be at least 1."
                )


def describe_folder(folder: Path) -> str:
    """Return what a folder without a model has instead, and what to do with it, as sentences; "": nothing known."""
    names = sorted(p.name for p in folder.iterdir())
    if ADAPTER_FILE in names:
        return " It is an adapter: name its base (base_model_name_or_path in that file), or the model that it was merged into."
    if files := [name for name in names if name.lower().endswith(".gguf")]:
        return f" It has GGUF files. Name one: model.source: {make_printable(str(folder / files[0]))}"
    pickles = [name for name in names if name.endswith((".bin", ".pt", ".pth", ".ckpt", ".h5"))]
    if not pickles:
        return ""
    return f" It has {make_printable(pickles[0])}, a pickle, which can run code and is never loaded here. " + (
        explain_conversion(str(folder))
    )


def check_quantisation(folder: Path, config: dict[str, Any]) -> None:
    """Refuse weights that were quantised by another tool than bitsandbytes. config: the content of config.json.

    DataError: they were. The message says what to name instead.
    """
    quantised = config.get("quantization_config")
    method = quantised.get("quant_method", "bitsandbytes") if isinstance(quantised, dict) else "bitsandbytes"
    if isinstance(config.get("quantization"), dict):  # mlx-lm writes this key, and transformers ignores it
        method = "mlx"
    if method != "bitsandbytes":
        raise DataError(
            f"model.source: {folder} was quantised by {make_printable(str(method))}, whose weights are not read. Name the "
            "16-bit model that it was made from, and model.quantization: nf4 | int8 quantises it here."
        )


def check_weights(folder: Path, config: dict[str, Any]) -> None:
    """Check the headers of a folder's weights before a library reads them.

    config: the content of config.json. DataError: a file is not safetensors, a shard is absent, or config.json names far more
    layers than there are tensors.
    """
    weights = sorted(p for p in folder.iterdir() if p.suffix in WEIGHT_SUFFIXES)
    index = folder / "model.safetensors.index.json"
    if index.exists():
        try:
            shards = set(map(str, json.loads(index.read_bytes())["weight_map"].values()))
        except (ValueError, RecursionError, LookupError, TypeError, AttributeError):
            raise DataError(f"model.source: {index} is not an index of shards. Use a complete checkpoint.") from None
        # absent are also those in another folder, which the digest does not cover
        absent = sorted(shards - {p.name for p in weights})
        if absent:
            raise DataError(f"model.source: {folder} has no {make_printable(absent[0])}, which its index names.")
    tensors = 0
    for path in weights:
        with path.open("rb") as file:
            try:
                size = path.stat().st_size
                tensors += len(parse_header(file.read(min(size, HEADER_LIMIT + 8)), size)[0])
            except ValueError as e:
                raise DataError(f"model.source: {path}: {e}. Use a complete checkpoint.") from None
    layers = config.get("num_hidden_layers")
    if isinstance(layers, int) and layers > max(tensors, LAYER_LIMIT):  # building them would take forever
        raise DataError(
            f"model.source: {folder}/config.json says {layers:,} layers, and the weights are {tensors:,} tensors."
        )


def parse_header(raw: bytes, size: int) -> tuple[dict[str, Any], int]:
    """Return the header of a safetensors file, and the offset at which its tensors' data starts.

    The library checks offsets and sizes itself. But it keeps the last of duplicate keys, and allows 100 MB of header.

    Args:
        raw: the beginning of the file, the whole header included.
        size: the file's bytes.

    Raises:
        ValueError: the header is malformed, or has what the library would accept or take long over.
    """

    def refuse_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        table = dict(pairs)
        if len(table) < len(pairs):
            raise ValueError("it has the same key twice")
        return table

    length = int.from_bytes(raw[:8], "little")
    if length > HEADER_LIMIT and raw.startswith(PICKLE_PREFIXES):
        raise ValueError("a pickle, an archive or HDF5 under this name, which can run code and is never loaded")
    if length > min(HEADER_LIMIT, len(raw) - 8):
        raise ValueError(f"a header of {length:,} bytes in a file of {size:,}")
    try:
        header = json.loads(raw[8 : 8 + length], object_pairs_hook=refuse_duplicates)
    except (ValueError, RecursionError) as e:
        raise ValueError(f"its header cannot be read: {make_printable(str(e))}") from None
    if not isinstance(header, dict) or not isinstance(header.get("__metadata__", {}), dict):
        raise ValueError("its header is not a table")
    if len(header) > TENSOR_LIMIT:
        raise ValueError(f"{len(header):,} tensors, where at most {TENSOR_LIMIT:,} make sense")
    return header, 8 + length


@contextmanager
def translate_errors(folder: Path) -> Iterator[None]:
    """Turn what the libraries raise over a model's files into a DataError of one sentence. Out of memory stays as it is.

    The lock of the libraries is held meanwhile.
    """
    try:
        with LIBRARY_LOCK:
            yield
    except ZoedgeError:
        raise
    except Exception as e:  # tokenizers raises a bare Exception, and transformers a TypeError for an odd config.json
        if is_out_of_memory(e):
            raise
        first = (str(e).strip().splitlines() or [type(e).__name__])[0]
        raise DataError(f"model.source: {folder}: {make_printable(first, 300)}") from e

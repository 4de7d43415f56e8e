"""Loading and quantising, with every trap of the libraries below stepped over (see docs/traps.md).

Quantised weights are kept in the cache: quantising costs time and a peak of memory once, the next load has neither.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from copy import copy
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from ...errors import DataError, ZoedgeError, plain
from ...log.log import canonical
from ..sources.resolve import cache, complete, resolve_model, sha256
from .base import DTYPES, Base, facts_of, release

if TYPE_CHECKING:
    from ...recipe.check import Model

logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # else: a line about a kernel from a hub at every import
logging.getLogger("accelerate.big_modeling").setLevel(logging.ERROR)  # else: what max_memory asks for, as a warning
ALLOWED = (".safetensors",)
HEADER_LIMIT, TENSORS = 8 << 20, 100_000  # of a safetensors file; 300,000 empty tensors took the library 7 s
PICKLED = (b"PK", b"\x80\2", b"\x80\3", b"\x80\4", b"\x80\5", b"\x89HDF", b"\x1f\x8b")  # torch.save's, pickle's, ...
FAULTS = {
    "missing_keys": "missing: transformers would fill them with random values",
    "unexpected_keys": "not part of this architecture: transformers would drop them",
    "mismatched_keys": "of another shape than config.json says",
    "error_msgs": "not readable",
}


def device_of(spec: Model) -> torch.device:
    if spec.device == "cuda" and not torch.cuda.is_available():
        built = "this torch is a CPU-only build" if torch.version.cuda is None else "no CUDA device is visible"
        raise DataError(f"model.device: cuda, but {built}. Use device: cpu, or install torch with CUDA.")
    if spec.device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return torch.device(spec.device)


def dtype_of(spec: Model, device: torch.device) -> torch.dtype:
    """auto: fp32 on a CPU, bf16 on a GPU that has it, else fp16.

    fp32 on CPUs because a step's signal is a difference of two losses, and because bf16 is no rule of speed there: on
    one machine 3x faster, on another (Xeon with avx512_bf16, no AMX) 165 against 300 GFLOP/s.
    """
    if spec.compute_dtype != "auto":
        return DTYPES[spec.compute_dtype]
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
    return torch.float32


def identity(folder: Path, spec: Model) -> bytes:
    """SHA-256 over the sorted (name, size, sha256) of configuration and weights, and the quantisation."""
    files = sorted(p for p in folder.iterdir() if p.suffix in ALLOWED or p.name == "config.json")
    manifest = [[p.name, p.stat().st_size, sha256(p)] for p in files]
    scheme = [spec.quantization, spec.double_quant and spec.quantization in ("nf4", "fp4")]
    return hashlib.sha256(canonical([manifest, scheme])).digest()


def tokenizer_digest(tokenizer: Any) -> bytes:
    """What decides the ids: the tokenizer's own file, the special tokens, the chat template."""
    backend = tokenizer.backend_tokenizer.to_str()
    special = {k: str(v) for k, v in tokenizer.special_tokens_map.items()}
    return hashlib.sha256(canonical([backend, special, tokenizer.chat_template or ""])).digest()


def load(spec: Model) -> Base:
    """The base of a recipe: frozen, quantised, in exactly the mode that training scores with.

    DataError: missing or random tensors, pickled weights, an unknown family, no such source.
    """
    device = device_of(spec)
    dtype = dtype_of(spec, device)
    if spec.threads:
        torch.set_num_threads(spec.threads)
    folder, digest = prepare(spec)
    places = placed(folder, spec.max_memory, device, dtype) if spec.max_memory is not None else None
    model = from_pretrained(folder, device, dtype if spec.quantization == "none" else "auto", places=places)
    tame(model, dtype)
    release()
    return Base(model, load_tokenizer(folder), facts_of(model.config), dtype, device, digest, folder)


def prepare(spec: Model) -> tuple[Path, bytes]:
    """(the folder that is loaded: the source's own, or its quantised copy in the cache; the base's identity)."""
    folder = resolve_model(spec.source, spec.revision)
    check_files(folder)
    digest = identity(folder, spec)
    return (folder if spec.quantization == "none" else quantised(folder, spec, digest)), digest


def load_tokenizer(folder: Path) -> Any:
    from transformers import AutoTokenizer

    with in_a_sentence(folder):
        tokenizer = AutoTokenizer.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
    if not tokenizer.is_fast:
        raise DataError(f"{folder}: no fast tokenizer (tokenizer.json). Convert it with transformers first.")
    return tokenizer


def check_files(folder: Path) -> None:
    """Whatever can be refused before transformers is asked: no configuration, an unknown family, no safetensors."""
    if not (folder / "config.json").exists():
        raise DataError(f"model.source: {folder} has no config.json: not a model folder.")
    for path in folder.iterdir():  # a pipe would make us wait, /dev/zero never ends
        if path.suffix in (*ALLOWED, ".json", ".txt", ".model", ".jinja") and not path.is_file():
            raise DataError(f"model.source: {path} is not a regular file. Use a complete checkpoint.")
    try:
        with (folder / "config.json").open("rb") as file:
            raw = file.read(HEADER_LIMIT + 1)
        config = json.loads(raw) if len(raw) <= HEADER_LIMIT else None
    except (ValueError, RecursionError) as e:
        raise DataError(f"model.source: {folder}/config.json is not valid JSON: {plain(str(e))}") from None
    facts_of(SimpleNamespace(model_type=config.get("model_type") if isinstance(config, dict) else None))
    if "Classification" in (made := str(config.get("architectures"))):
        raise DataError(
            f"model.source: {folder} was saved as {plain(made)}, whose head is of one task's classes. zoedge scores words "
            "with the language model's own head: name the pretrained checkpoint."
        )
    if not any(p.suffix == ".safetensors" for p in folder.iterdir()):
        pickled = [p.name for p in folder.iterdir() if p.suffix in (".bin", ".pt", ".pth", ".ckpt", ".h5")]
        extra = f" It has {pickled[0]}, a pickle, which can run code and is never loaded." if pickled else ""
        raise DataError(f"model.source: {folder} has no .safetensors weights.{extra}")
    check_weights(folder, config)


def check_weights(folder: Path, config: dict[str, Any]) -> None:
    """The headers of a folder's weights, before a library reads them. DataError: not safetensors, or not as config.json."""
    tensors, found = 0, sorted(p for p in folder.iterdir() if p.suffix in ALLOWED)
    if (index := folder / "model.safetensors.index.json").exists():
        try:
            placed = set(map(str, json.loads(index.read_bytes())["weight_map"].values()))
        except (ValueError, RecursionError, LookupError, TypeError, AttributeError):
            raise DataError(f"model.source: {index} is not an index of shards. Use a complete checkpoint.") from None
        if absent := sorted(placed - {p.name for p in found}):  # or of another folder, which the digest does not see
            raise DataError(f"model.source: {folder} has no {plain(absent[0])}, which its index names.")
    for path in found:
        with path.open("rb") as file:
            try:
                size = path.stat().st_size
                tensors += len(header_of(file.read(min(size, HEADER_LIMIT + 8)), size)[0])
            except ValueError as e:
                raise DataError(f"model.source: {path}: {e}. Use a complete checkpoint.") from None
    if isinstance(layers := config.get("num_hidden_layers"), int) and layers > max(
        tensors, 1000
    ):  # building them would not end
        raise DataError(
            f"model.source: {folder}/config.json says {layers:,} layers, and the weights are {tensors:,} tensors."
        )


def header_of(raw: bytes, size: int) -> tuple[dict[str, Any], int]:
    """(the header of a safetensors file of `size` bytes that begins with `raw`, where the payload starts).

    ValueError says what the library lets pass, or takes long over: it keeps the last of duplicate keys, and allows
    100 MB of header. Offsets and sizes it checks itself.
    """

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len(found := dict(pairs)) < len(pairs):
            raise ValueError("a key stands there twice")
        return found

    length = int.from_bytes(raw[:8], "little")
    if length > HEADER_LIMIT and raw.startswith(PICKLED):
        raise ValueError("a pickle, an archive or HDF5 under this name, which can run code and is never loaded")
    if length > min(HEADER_LIMIT, len(raw) - 8):
        raise ValueError(f"a header of {length:,} bytes in a file of {size:,}")
    try:
        header = json.loads(raw[8 : 8 + length], object_pairs_hook=once)
    except (ValueError, RecursionError) as e:
        raise ValueError(f"its header cannot be read: {plain(str(e))}") from None
    if not isinstance(header, dict) or not isinstance(header.get("__metadata__", {}), dict):
        raise ValueError("its header is not a table")
    if len(header) > TENSORS:
        raise ValueError(f"{len(header):,} tensors, where at most {TENSORS:,} make sense")
    return header, 8 + length


@contextmanager
def in_a_sentence(folder: Path) -> Iterator[None]:
    """What the libraries raise over a model's files, in one sentence; running out of memory stays what it is."""
    try:
        yield
    except (torch.OutOfMemoryError, ZoedgeError):
        raise
    except Exception as e:  # of any kind: the tokenizers' library raises a bare Exception, odd configurations TypeError
        first = (str(e).strip().splitlines() or [type(e).__name__])[0]
        raise DataError(f"model.source: {folder}: {plain(first, 300)}") from e


def auto_class(folder: Path) -> tuple[Any, Any]:
    """(transformers' class that loads a model folder with its language model's head, the family's facts)."""
    import transformers

    facts = facts_of(SimpleNamespace(**json.loads((folder / "config.json").read_bytes())))
    return getattr(transformers, f"AutoModelFor{facts.HEAD}"), facts


def config_of(folder: Path) -> tuple[Any, Any]:
    """(a model's configuration, its family's facts), without its weights."""
    from transformers import AutoConfig

    with in_a_sentence(folder):
        config = AutoConfig.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
    return config, facts_of(config)


def placed(folder: Path, limits: dict[str, str], device: torch.device, dtype: torch.dtype) -> dict[str, Any]:
    """accelerate's device map: all but the blocks on the device, and as many of the last blocks as its limit allows; of
    the others the last on the CPU, and the rest on the disk. DataError: the device cannot hold what is no block.
    """
    from accelerate import init_empty_weights
    from accelerate.utils import convert_file_size_to_int

    made, facts = auto_class(folder)
    with init_empty_weights():
        model = made.from_config(config_of(folder)[0])
    model.tie_weights()
    first: Any = 0 if device.type == "cuda" else "cpu"
    room = {first: math.inf} | {0 if k == "cuda" else k: convert_file_size_to_int(v) for k, v in limits.items()}
    size = lambda prefix: sum(p.numel() * dtype.itemsize for n, p in model.named_parameters() if n.startswith(prefix))
    fixed = size("") - size(f"{facts.BLOCKS}.")
    if (left := room[first] - fixed) < 0:
        raise DataError(
            f"model.max_memory: embeddings, norms and head take {fixed / 1e6:,.0f} MB, which {device.type} must hold. "
            "Give it more, or use a smaller model."
        )
    room[first] = left
    places: dict[str, Any] = {}
    for i in reversed(range(len(model.get_submodule(facts.BLOCKS)))):
        name = f"{facts.BLOCKS}.{i}"
        needs = size(f"{name}.")
        where = next((d for d in (first, "cpu") if room.get(d, 0) >= needs), "disk")
        places[name] = where
        if where != "disk":
            room[where] -= needs
    inside = ""
    for word in facts.BLOCKS.split("."):
        there = model.get_submodule(inside.rstrip("."))
        places |= {f"{inside}{name}": first for name, _ in there.named_children() if name != word}
        inside += f"{word}."
    return places


def from_pretrained(
    folder: Path, device: torch.device, dtype: Any, config: Any = None, places: dict[str, Any] | None = None
) -> Any:
    """transformers' loader without its silences: no pickles, no remote code, no random tensors, no progress bars.

    places: accelerate's device map; None: all on the device.
    """
    from transformers.utils import logging as chatter

    chatter.set_verbosity_error()
    chatter.disable_progress_bar()
    options = {} if config is None else {"quantization_config": config}
    made, facts = auto_class(folder)
    spare = None
    if places is not None:  # where accelerate writes what it cannot read from the checkpoint as it is
        spare = tempfile.TemporaryDirectory(dir=cache("offload"))
        options["offload_folder"] = spare.name
    with in_a_sentence(folder):
        # trust_remote_code: left out, an unknown class with an auto_map *asks* whether to run its code, and waits for y
        found: Any = made.from_pretrained(
            str(folder), **options, dtype=dtype, use_safetensors=True, local_files_only=True, trust_remote_code=False,
            device_map=places or ({"": 0} if device.type == "cuda" else None), output_loading_info=True,
            attn_implementation="sdpa", ignore_mismatched_sizes=True,
        )  # fmt: skip
    model, info = found
    model.spare = spare  # gone with the model
    for what, why in FAULTS.items():
        if names := sorted(n for n in map(str, info.get(what) or ()) if not n.startswith(getattr(facts, "UNUSED", ()))):
            raise DataError(
                f"model.source: {folder}: {len(names)} tensor(s) ({plain(', '.join(names[:3]), 300)}) {why}. "
                "Use a complete checkpoint."
            )
    if facts.HEAD == "MaskedLM" and (
        model.config.is_decoder or model.get_output_embeddings().weight is not model.get_input_embeddings().weight
    ):
        raise DataError(
            f"model.source: {folder}: no masked language model: its decoder is not tied to its embeddings, or config.json "
            "says is_decoder. Use the pretrained checkpoint, with tie_word_embeddings."
        )
    return model.requires_grad_(False)


def scheme(spec: Model) -> Any:
    from transformers import BitsAndBytesConfig

    if spec.quantization == "int8":
        return BitsAndBytesConfig(load_in_8bit=True, llm_int8_threshold=0.0)
    return BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type=spec.quantization, bnb_4bit_use_double_quant=spec.double_quant,
        bnb_4bit_compute_dtype=torch.float32,
    )  # fmt: skip


def quantised(folder: Path, spec: Model, digest: bytes) -> Path:
    """The cache's folder of these weights in this quantisation, made on first use."""
    from transformers import AutoConfig

    with in_a_sentence(folder):
        config = AutoConfig.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
    if getattr(config, "quantization_config", None):
        raise DataError(
            f"model.source: {folder} is quantised already. Name the 16-bit model, or set quantization: none."
        )
    # the tokenizer is not part of the base's identity, but it is of the folder: the same weights may come with another
    small = sorted(p for p in folder.iterdir() if p.suffix in (".json", ".txt", ".model", ".jinja"))
    key = hashlib.sha256(canonical([digest.hex(), [[p.name, sha256(p)] for p in small]])).hexdigest()[:16]

    def make(draft: Path) -> None:
        model = from_pretrained(folder, device_of(spec), "auto", scheme(spec))
        model.should_save_on_this_rank = lambda main: True  # else only worker 0's folder has weights in it
        model.save_pretrained(draft)
        del model
        load_tokenizer(folder).save_pretrained(draft)
        (draft / "zoedge.json").write_text(json.dumps({"base": digest.hex(), "source": spec.source}))
        release()

    return complete(cache("quantised") / f"{key}-{spec.quantization}", make)


def tame(model: Any, dtype: torch.dtype) -> None:
    """Make every forward the function that training differentiates.

    Evaluation mode everywhere except in bitsandbytes' modules, which repack their weights in evaluation mode on CPUs
    with AVX512-BF16 and compute in bf16 from then on; no dropout anywhere; int8 without quantised activations. Tables
    of tokens stay in the storage type (only rows of them are read), everything else small is in the compute type.
    """
    model.eval()
    tables = {id(model.get_input_embeddings().weight), id(model.get_output_embeddings().weight)}
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        for name in ("dropout", "attention_dropout", "activation_dropout", "layerdrop"):  # OPT's own, not nn.Dropout
            if isinstance(getattr(module, name, None), float):
                setattr(module, name, 0.0)
        tame_linear(module, dtype)
    for p in model.parameters():
        if p.is_floating_point() and id(p) not in tables and type(p) is nn.Parameter:
            p.data = p.data.to(dtype)
    table = model.get_input_embeddings()
    scale = getattr(table, "scalar_embed_scale", 1.0)  # Gemma's module rounds it, and its product, to the storage type
    if scale != 1.0:
        table.scalar_embed_scale, table.factor = 1.0, scale  # the next call finds nothing to do
        table.embed_scale.fill_(1.0)
    table.register_forward_hook(lambda m, args, y: y.to(dtype) * scale if scale != 1.0 else y.to(dtype))
    head = model.get_output_embeddings()
    head.register_forward_pre_hook(lambda m, args: (args[0].to(m.weight.dtype),))
    if model.can_generate():
        model.generation_config.max_length = None


def tame_linear(module: nn.Module, dtype: torch.dtype) -> None:
    """A bitsandbytes Linear that computes the same function in every mode, in `dtype`; others are left alone."""
    import bitsandbytes as bnb

    if isinstance(module, bnb.nn.Linear4bit):
        module.train()
        module.support_avx512bf16_for_cpu = False
        module.compute_dtype, module.compute_type_is_set = dtype, True
    if isinstance(module, bnb.nn.Linear8bitLt):
        module.train()
        module.forward = Int8(module)  # type: ignore[method-assign]


class Int8:
    """y = x (CB * SCB / 127)': an int8 Linear that dequantises and leaves the activations alone, on every device."""

    def __init__(self, module: Any):
        self.module = module

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.linear(x, weight_of(self.module, x.dtype), self.bias(x.dtype))

    def bias(self, dtype: torch.dtype) -> torch.Tensor | None:
        return None if self.module.bias is None else self.module.bias.to(dtype)


def weight_of(module: nn.Linear, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """The weight [out, in] as the forward uses it, dequantised."""
    import bitsandbytes as bnb

    weight: Any = module.weight
    if isinstance(module, bnb.nn.Linear4bit):
        quant = copy(weight.quant_state)
        quant.dtype = dtype  # the forward dequantises to its own type; the checkpoint's float16 would round once more
        return bnb.functional.dequantize_4bit(weight.data, quant)
    if isinstance(module, bnb.nn.Linear8bitLt):
        state: Any = module.state
        codes = weight.CB if weight.CB is not None else state.CB if state.CB is not None else weight.data
        scale = weight.SCB if weight.SCB is not None else state.SCB
        return (codes.float() * (scale.float()[:, None] / 127.0)).to(dtype)
    return weight.data.to(dtype)

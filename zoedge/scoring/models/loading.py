"""This module loads and quantises a base model without the traps of the libraries (docs/traps.md lists them).

Quantised weights are stored in the cache, so that quantising costs its time and its peak of memory only once.
"""

from __future__ import annotations

import gc
import hashlib
import json
import logging
import math
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from ...core.canonical import encode_canonical
from ...errors import DataError, make_printable
from ..sources.cache import DraftFolder, cache_folder, require_model_files
from ..sources.create import create_once
from ..sources.file_digests import file_sha256
from ..sources.resolve import resolve_model
from .base import DTYPES, Base
from .checkpoint import base_identity, check_files, other_digests, translate_errors
from .families import FamilyFacts, load_family
from .libraries import LIBRARY_LOCK
from .quantised import make_linear_deterministic

if TYPE_CHECKING:
    from transformers import BitsAndBytesConfig, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

    from ...recipe.sections import Model

logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # else it writes about a kernel from the hub at every import
logging.getLogger("accelerate.big_modeling").setLevel(logging.ERROR)  # else it warns of what model.max_memory asks for

LOADING_FAULTS = {
    "missing_keys": "missing: transformers would fill them with random values",
    "unexpected_keys": "not part of this architecture: transformers would drop them",
    "mismatched_keys": "of another shape than config.json says",
    "error_msgs": "not readable",
}


def resolve_device(spec: Model) -> torch.device:
    """Return the device that a recipe names; auto is CUDA where there is one. DataError: CUDA is named and not there."""
    if spec.device == "cuda" and not torch.cuda.is_available():
        reason = "this torch is a CPU-only build" if torch.version.cuda is None else "no CUDA device is visible"
        raise DataError(f"model.device: cuda, but {reason}. Use device: cpu, or install torch with CUDA.")
    if spec.device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return torch.device(spec.device)


def resolve_dtype(spec: Model, device: torch.device) -> torch.dtype:
    """Return the type of the forward that a recipe names; auto is fp32 on a CPU, bf16 on a GPU that has it, else fp16.

    It is fp32 on CPUs because a step's signal is the difference of two losses, and because bf16 is not always faster there:
    on one machine it was 3 times as fast, on another (a Xeon with avx512_bf16 and without AMX) it had 165 GFLOP/s against 300.
    """
    if spec.compute_dtype != "auto":
        return DTYPES[spec.compute_dtype]
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
    return torch.float32


def load_base(spec: Model) -> Base:
    """Return the base of a recipe's model section, frozen, quantised, and in the mode in which training scores.

    DataError: there is no such source, its family is unknown, its weights are pickled, or tensors are missing.
    """
    device = resolve_device(spec)
    dtype = resolve_dtype(spec, device)
    if spec.threads:
        torch.set_num_threads(spec.threads)
    source, folder, digest = prepare_folder(spec)
    places = make_device_map(folder, spec.max_memory, device, dtype) if spec.max_memory is not None else None
    model = from_pretrained(folder, device, dtype if spec.quantization == "none" else "auto", places=places)
    make_deterministic(model, dtype)
    release_memory()
    inputs = describe_inputs(source, spec, dtype)
    return Base(model, load_tokenizer(folder), load_family(model.config), dtype, device, digest, folder, inputs)


def prepare_folder(spec: Model) -> tuple[Path, Path, bytes]:
    """Return the source's folder, the folder to load (the same, or its quantised copy in the cache), and the base's digest."""
    source = resolve_model(spec.source, spec.revision)
    check_files(source)
    digest = base_identity(source, spec)
    return source, source if spec.quantization == "none" else quantised_folder(source, spec, digest), digest


def describe_inputs(source: Path, spec: Model, dtype: torch.dtype) -> dict[str, Any]:
    """Return `Base.inputs` of a base in a source's folder, whose forward is computed in `dtype`."""
    double = ", double quantisation" if spec.double_quant and spec.quantization in ("nf4", "fp4") else ""
    compute = str(dtype).removeprefix("torch.")
    return {"files": other_digests(source), "compute": compute, "quantization": f"{spec.quantization}{double}"}


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """Return the tokenizer of a model folder.

    DataError: it cannot be read, is not a fast one, or is not what its tokenizer.json says.
    """
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    with translate_errors(folder):
        tokenizer = AutoTokenizer.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
    if not tokenizer.is_fast:
        raise DataError(f"{folder}: no fast tokenizer (tokenizer.json). Convert it with transformers first.")
    with translate_errors(folder):
        if is_as_written(tokenizer, folder):
            return tokenizer
        # transformers builds the tokenizers of some families anew, whatever tokenizer.json says
        tokenizer = PreTrainedTokenizerFast.from_pretrained(str(folder), local_files_only=True)
        if is_as_written(tokenizer, folder):
            return tokenizer
    raise DataError(
        f"model.source: {folder}: transformers builds another tokenizer than tokenizer.json describes: the two make other "
        "tokens of the same text. Load it with transformers, save it again, and train on what was saved."
    )


# upper case, spaces, line breaks, digits, accents, other scripts: what normalisers and splitting rules treat apart
PROBE_TEXT = "The fox's 1234 naïve  cafés —\n\n\tÜber: don't, I'll; 漢字 и ひらがな 🙂 <b>x</b> A_B"


def is_as_written(tokenizer: PreTrainedTokenizerBase, folder: Path) -> bool:
    """Return whether a tokenizer makes the tokens of a probe text that its tokenizer.json makes, where there is one."""
    from tokenizers import Tokenizer

    file = folder / "tokenizer.json"
    if not file.is_file():
        return True  # made from a sentencepiece model
    own = Tokenizer.from_file(str(file))
    own.no_padding()
    own.no_truncation()
    ids = tokenizer(PROBE_TEXT, add_special_tokens=False).input_ids
    return bool(tokenizer.convert_ids_to_tokens(ids) == own.encode(PROBE_TEXT, add_special_tokens=False).tokens)


def auto_class(folder: Path) -> tuple[Any, FamilyFacts]:
    """Return transformers' class that loads a folder with its language model's head, and the module of its family."""
    import transformers

    facts = load_family(SimpleNamespace(**json.loads((folder / "config.json").read_bytes())))
    return getattr(transformers, f"AutoModelFor{facts.HEAD}"), facts


def load_config(folder: Path) -> tuple[PreTrainedConfig, FamilyFacts]:
    """Return the configuration of a model folder and the module of its family, without loading weights."""
    from transformers import AutoConfig

    with translate_errors(folder):
        config = AutoConfig.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
    return config, load_family(config)


def make_device_map(
    folder: Path, limits: dict[str, str], device: torch.device, dtype: torch.dtype
) -> dict[str, int | str]:
    """Return accelerate's device map: where each module lies, by name.

    Everything that is no block lies on the device, and so do as many of the last blocks as its limit allows. Of the other
    blocks the last ones lie in the CPU's memory, and the rest on the disk.

    Args:
        limits: model.max_memory, such as {"cuda": "2GB", "cpu": "4GB"}.
        dtype: the type of the weights, for their size.

    Raises:
        DataError: the device cannot hold what is no block.
    """
    from accelerate import init_empty_weights
    from accelerate.utils import convert_file_size_to_int

    model_class, facts = auto_class(folder)
    with LIBRARY_LOCK, init_empty_weights():
        model = model_class.from_config(load_config(folder)[0])
    model.tie_weights()
    first: int | str = 0 if device.type == "cuda" else "cpu"
    room = {first: math.inf} | {0 if k == "cuda" else k: convert_file_size_to_int(v) for k, v in limits.items()}

    def size(prefix: str) -> int:
        return sum(p.numel() * dtype.itemsize for name, p in model.named_parameters() if name.startswith(prefix))

    fixed = size("") - size(f"{facts.BLOCKS}.")
    room[first] -= fixed
    if room[first] < 0:
        raise DataError(
            f"model.max_memory: embeddings, norms and head take {fixed / 1e6:,.0f} MB, which {device.type} must hold. "
            "Give it more, or use a smaller model."
        )
    places: dict[str, int | str] = {}
    for i in reversed(range(len(model.get_submodule(facts.BLOCKS)))):
        name = f"{facts.BLOCKS}.{i}"
        needs = size(f"{name}.")
        where = next((d for d in (first, "cpu") if room.get(d, 0) >= needs), "disk")
        places[name] = where
        if where != "disk":
            room[where] -= needs
    inside = ""  # the dotted name of the module whose other children are placed, down to the list of blocks
    for word in facts.BLOCKS.split("."):
        parent = model.get_submodule(inside.rstrip("."))
        places |= {f"{inside}{name}": first for name, _ in parent.named_children() if name != word}
        inside += f"{word}."
    return places


def from_pretrained(
    folder: Path,
    device: torch.device,
    dtype: torch.dtype | str,
    config: BitsAndBytesConfig | None = None,
    places: dict[str, int | str] | None = None,
) -> PreTrainedModel:
    """Load a model folder with transformers, without pickles, remote code, random tensors and progress bars.

    Args:
        dtype: the type of the weights; auto: as the checkpoint has them.
        config: how to quantise them; None: not.
        places: accelerate's device map; None: all weights lie on the device.

    Raises:
        DataError: tensors are missing, not known to the architecture or of another shape, or a library's own error.
    """
    from transformers.utils import logging as chatter

    chatter.set_verbosity_error()
    chatter.disable_progress_bar()
    options: dict[str, object] = {} if config is None else {"quantization_config": config}
    model_class, facts = auto_class(folder)
    spare = None
    if places is not None:  # where accelerate writes what it cannot read from the checkpoint as it is
        spare = DraftFolder(cache_folder("offload"))
        options["offload_folder"] = spare.name
    with translate_errors(folder):
        # without trust_remote_code, an unknown class with an auto_map makes transformers ask on the terminal, and wait
        model, info = model_class.from_pretrained(
            str(folder),
            **options,
            dtype=dtype,
            use_safetensors=True,
            local_files_only=True,
            trust_remote_code=False,
            device_map=places or ({"": 0} if device.type == "cuda" else None),
            output_loading_info=True,
            attn_implementation="sdpa",
            ignore_mismatched_sizes=True,
        )
    model.spare = spare  # the temporary folder is deleted with the model
    for what, why in LOADING_FAULTS.items():
        if names := sorted(n for n in map(str, info.get(what) or ()) if not n.startswith(facts.UNUSED)):
            raise DataError(
                f"model.source: {folder}: {len(names)} tensor(s) ({make_printable(', '.join(names[:3]), 300)}) {why}. "
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


def bitsandbytes_config(spec: Model) -> BitsAndBytesConfig:
    """Return the configuration that quantises a model as a recipe says."""
    from transformers import BitsAndBytesConfig

    if spec.quantization == "int8":
        return BitsAndBytesConfig(load_in_8bit=True, llm_int8_threshold=0.0)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=spec.quantization,
        bnb_4bit_use_double_quant=spec.double_quant,
        bnb_4bit_compute_dtype=torch.float32,
    )


def quantised_folder(folder: Path, spec: Model, digest: bytes) -> Path:
    """Return the cache's folder with these weights in this quantisation, which is made on first use.

    digest: the base's. DataError: the model is quantised already.
    """
    from transformers import AutoConfig

    with translate_errors(folder):
        config = AutoConfig.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
    if getattr(config, "quantization_config", None):
        raise DataError(
            f"model.source: {folder} is quantised already. Name the 16-bit model, or set quantization: none."
        )
    # the base's digest leaves the tokenizer out, but the folder holds it, and equal weights may come with another tokenizer
    small = sorted(p for p in folder.iterdir() if p.suffix in (".json", ".txt", ".model", ".jinja"))
    key = hashlib.sha256(encode_canonical([digest.hex(), [[p.name, file_sha256(p)] for p in small]])).hexdigest()[:16]

    def make(draft: Path) -> None:
        model: Any = from_pretrained(folder, resolve_device(spec), "auto", bitsandbytes_config(spec))
        model.should_save_on_this_rank = lambda main: True  # else a run's other workers write no weights
        model.save_pretrained(draft)
        del model
        load_tokenizer(folder).save_pretrained(draft)
        require_model_files(draft)
        (draft / "zoedge.json").write_text(json.dumps({"base": digest.hex(), "source": spec.source}))
        release_memory()

    return create_once(cache_folder("quantised") / f"{key}-{spec.quantization}", make)


def make_deterministic(model: PreTrainedModel, dtype: torch.dtype) -> None:
    """Let every forward of the model compute the same function, in `dtype`.

    All modules are put into evaluation mode but those of bitsandbytes, which would repack their weights on CPUs with
    AVX512-BF16, and compute in bf16 from then on. There is no dropout, and int8 does not quantise activations. The tables of
    tokens stay in the type in which they are stored, because only rows of them are read; the other unquantised weights are
    converted to `dtype`.
    """
    model.eval()
    tables = {id(model.get_input_embeddings().weight), id(model.get_output_embeddings().weight)}
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        for name in ("dropout", "attention_dropout", "activation_dropout", "layerdrop"):  # OPT has no nn.Dropout
            if isinstance(getattr(module, name, None), (int, float)):
                setattr(module, name, 0.0)
        make_linear_deterministic(module, dtype)
    for p in model.parameters():
        if p.is_floating_point() and id(p) not in tables and type(p) is nn.Parameter:
            p.data = p.data.to(dtype)
    table: Any = model.get_input_embeddings()  # of a class of the family's own
    scale = getattr(table, "scalar_embed_scale", 1.0)  # Gemma would round it, and its product, to the stored type
    if scale != 1.0:
        table.scalar_embed_scale, table.factor = 1.0, scale  # a second call then changes nothing
        table.embed_scale.fill_(1.0)
    table.register_forward_hook(lambda m, args, y: y.to(dtype) * scale if scale != 1.0 else y.to(dtype))
    head = model.get_output_embeddings()
    head.register_forward_pre_hook(lambda m, args: (args[0].to(m.weight.dtype),))
    if model.can_generate():
        model.generation_config.max_length = None


def release_memory() -> None:
    """Give freed memory back to the system, because glibc keeps hundreds of megabytes after loading."""
    import ctypes
    from contextlib import suppress

    gc.collect()
    with suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)

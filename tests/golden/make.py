"""Writes golden logs: `python tests/golden/make.py` adds those of CELLS that are not there yet, and changes none.

Every noise, estimator, rule and space of a format's version has one. A golden log that does not replay is a broken
promise, not an outdated file: mend the code, or give what changed a new id and keep the old one. The base is made on the
spot, its weights a function of integers, so that it is the same everywhere.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from zoedge.core import digests, engine
from zoedge.log.log import Log
from zoedge.methods.spaces._basis import Basis
from zoedge.methods.spaces.aligned import BASIS_KEY
from zoedge.recipe.check import check
from zoedge.run import setup

HERE = Path(__file__).parent
EXPECTED = HERE / "expected.json"
WORDS = "<unk> <s> </s> a film was it great terrible dull bright good bad It".split()
WIDTH = 32
LORA = {"name": "lora", "rank": 2, "targets": ["q_proj", "v_proj"]}
# name: (space, storage or quantisation, noise, estimator, rule, rewinds); 9 noises, 12 estimators, 6 rules, 7 spaces
CELLS: dict[str, tuple[Any, ...]] = {
    "lora": (LORA, "none", "rademacher", {"name": "two_sided", "queries": 2}, "sgd", True),
    "lora-b": (LORA | {"train": "b"}, "nf4", "normal", "curved", "hizoo", False),
    "low-rank": (LORA, "none", {"name": "low_rank", "refresh": 2}, {"name": "fzoo", "queries": 4}, "momentum", True),
    "prompt": ({"name": "prompt", "tokens": 2}, "none", "normal", "two_sided", {"name": "adamu", "warm": 2}, False),
    "prefix": ({"name": "prefix", "tokens": 2}, "none", "sphere", "dap", "adam", False),
    "several": ({"name": "several", "of": {"lora": {"rank": 2}, "prompt": {"tokens": 2}}}, "none", "uniform", "residual",
                "sign", False),
    "as2p": ({"name": "prompt", "tokens": 2}, "none", "uniform_raw", "as2p", {"name": "sgd", "lr": 1.0}, False),
    "scales": ("scales", "nf4", "sparse", "one_sided", "momentum", False),
    "full-fp32": ("full", "fp32", "block", "conservative", "sgd", False),
    "full-bf16": ("full", "bf16", {"name": "sparse", "of": "rademacher"}, "s2p", "sgd", True),
    "full-fp16": ("full", "fp16", "normal", "two_sided", "adam", False),
    "coordinate": (LORA, "none", "coordinate", "stp", "sgd", False),
    "gauss-newton": (LORA, "none", "rademacher", "gauss_newton", "sgd", True),
    "forward": (LORA, "none", "normal", {"name": "forward", "queries": 2}, "sgd", True),
    "aligned": ({"name": "aligned", "k": 3, "layers": "last 1"}, "none", "normal", "two_sided", "sgd", False),
    "start": (LORA | {"start": "probe"}, "none", "rademacher", "two_sided", "sgd", False),
}  # fmt: skip


def base(folder: Path) -> Path:
    """A one-layer LLaMA, byte for byte the same on every machine and with every version of the libraries."""
    folder.mkdir()
    shapes = {"model.embed_tokens.weight": [len(WORDS), WIDTH], "model.norm.weight": [WIDTH]}
    for name in ("input_layernorm", "post_attention_layernorm"):
        shapes[f"model.layers.0.{name}.weight"] = [WIDTH]
    for name in (*(f"self_attn.{x}_proj" for x in "qkvo"), *(f"mlp.{x}_proj" for x in ("gate", "up", "down"))):
        shapes[f"model.layers.0.{name}.weight"] = [WIDTH, WIDTH]
    table: dict[str, Any] = {}
    payload = b""
    for i, (name, shape) in enumerate(sorted(shapes.items())):
        n = int(np.prod(shape))
        mixed = (np.arange(n, dtype=np.uint64) + 7919 * i + 1) * np.uint64(2654435761) >> np.uint64(16)
        values = ((mixed % 255).astype("<f4") - 127) / 512 + (len(shape) == 1)  # 8 bits: exact in bfloat16 too
        table[name] = {"dtype": "F32", "shape": shape, "data_offsets": [len(payload), len(payload) + 4 * n]}
        payload += values.astype("<f4").tobytes()
    head = json.dumps({"__metadata__": {"format": "pt"}, **table}, sort_keys=True).encode()
    head += b" " * (-len(head) % 8)
    (folder / "model.safetensors").write_bytes(len(head).to_bytes(8, "little") + head + payload)
    config = {
        "model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": len(WORDS), "hidden_size": WIDTH,
        "intermediate_size": WIDTH, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 2,
        "max_position_embeddings": 32, "tie_word_embeddings": True, "bos_token_id": 1, "eos_token_id": 2,
        "hidden_act": "silu", "rms_norm_eps": 1e-6,
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config, sort_keys=True))
    backend = {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": [], "normalizer": None,
        "pre_tokenizer": {"type": "Whitespace"}, "post_processor": None, "decoder": None,
        "model": {"type": "WordLevel", "vocab": {word: i for i, word in enumerate(WORDS)}, "unk_token": "<unk>"},
    }  # fmt: skip
    (folder / "tokenizer.json").write_text(json.dumps(backend, sort_keys=True))
    special = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "unk_token": "<unk>",
        "bos_token": "<s>",
        "eos_token": "</s>",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(special, sort_keys=True))
    return folder


def write(name: str, path: Path) -> dict[str, Any]:
    """A log of eight steps, in a folder that has the base as `tiny`; what must come of it."""
    space, stored, noise, estimator, rule, rewinds = CELLS[name]
    rows = [{"text": f"a {WORDS[3 + i % 3]} film it was {WORDS[9 + i % 4]}", "label": "np"[i % 2]} for i in range(8)]
    Path("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    table = {
        "version": 1, "name": name, "seed": 0xFEDCBA9876543210,
        "model": {"source": "tiny", "quantization": stored if stored in ("nf4", "none") else "none"},
        "data": {"train": "rows.jsonl", "max_length": 16},
        "task": {"name": "classify", "prompt": "{text} It was", "options": {"n": " terrible", "p": " great"}},
        "space": space, "noise": noise, "estimator": estimator, "rule": rule, "train": {"steps": 8, "batch": 2},
        "log": {"hash_every": 2}, "output": {"export": []},
    }  # fmt: skip
    if stored.startswith(("fp", "bf")):
        table["model"]["compute_dtype"] = stored
    if name not in ("as2p",):
        table["rule"] = {"lr": 0.01, **(rule if isinstance(rule, dict) else {"name": rule})}
    recipe = check(table, {}, name)
    first = setup.Measuring.build(recipe)
    if recipe.space.starts_at_base:  # as below
        a = {n: torch.arange(3 * wide).view(3, wide) % 5 / 8 - 0.25 for n, (_, wide) in first.space.shapes.items()}
        basis = Basis.of(a, (torch.arange(WIDTH)[:, None] % 7 - 3.0) / 16)
        first.space.take_start({**first.space.describe(), BASIS_KEY: basis.describe()})
    elif recipe.space.wants_start:  # a fitted one would be another on another machine
        numbers = torch.arange(2 * WIDTH).view(2, WIDTH) % 7 - 3.0
        first.space.freeze_term("model.layers.0.mlp.down_proj", numbers / 64, numbers.T / 16)
    header = first.header()
    with Log.create(path, header) as log:
        for until, back in ((5, 3), (8, None)) if rewinds else ((8, None),):
            bench = setup.Measuring.build(recipe, header)
            for _ in engine.play(bench.run(log), until):
                pass
            if back is not None:
                log.rewind(back)
        state = digests.digest(bench.space)
        log.finish(state)
        assert log.state.rewinds == rewinds and not any(r.flags & 1 for r in log) and any(any(r.g) for r in log)
        return {"steps": len(log), "slots": log.seq, "fingerprint": log.fingerprint, "state": state.hex()}


def main() -> None:
    expected = json.loads(EXPECTED.read_text()) if EXPECTED.exists() else {}
    with tempfile.TemporaryDirectory() as work:
        os.chdir(work)
        os.environ.setdefault("ZOEDGE_CACHE", f"{work}/cache")
        base(Path("tiny"))
        for name in CELLS:
            if (HERE / f"{name}.zlog").exists() or name in expected:
                continue
            expected[name] = write(name, HERE / f"{name}.zlog")
            EXPECTED.write_text(json.dumps(expected, indent=1) + "\n")
            print(name, expected[name])


if __name__ == "__main__":
    sys.exit(main())

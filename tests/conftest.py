"""Tiny models made on the spot, stricter settings than users get, and a cache of the tests' own."""

from __future__ import annotations

import gc
import json
import os
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # `&` and nohup have it ignored, and children would too
    signal.signal(signal.SIGINT, signal.default_int_handler)
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["ZOEDGE_OFFLINE"] = "1"
os.environ.setdefault("OMP_NUM_THREADS", "1")  # tiny models: threads cost more than they give

WORDS = "a the film is was it great terrible very dull bright story of and but so good bad plot actor scene fun boring".split()


def settle() -> None:
    """A collection, which every load of a model ends with, need not look at the libraries again: two thirds of a load."""
    if len(sys.modules) > imported[-1] + 100:
        imported.append(len(sys.modules))
        gc.collect()
        gc.freeze()


imported = [0]


def pytest_runtest_teardown() -> None:
    settle()


def fitting(kind: str, word: str) -> dict[str, Any]:
    """A recipe's table with that part, and with what the part says it goes only with."""
    from zoedge.core.parts import load_part

    table: dict[str, Any] = {kind: {"name": word}}
    for other, allowed in getattr(load_part(kind, word), "only_with", {}).items():
        key, _, option = other.partition(".")
        table.setdefault(key, {}).update({option or "name": allowed[0]})
    return table


def reference(folder: Path, spec: Any, auto: str = "AutoModelForCausalLM") -> Any:
    """transformers' own model in float32, eager attention, with the dequantised weights."""
    import torch
    import transformers

    from zoedge.scoring.models.loading import bitsandbytes_config, from_pretrained
    from zoedge.scoring.models.quantised import dequantise_weight

    model = (
        getattr(transformers, auto)
        .from_pretrained(str(folder), dtype=torch.float32, attn_implementation="eager")
        .eval()
    )
    if spec.quantization != "none":
        fresh = from_pretrained(folder, torch.device("cpu"), "auto", bitsandbytes_config(spec))
        replaced = [n for n, m in fresh.named_modules() if type(m).__module__.startswith("bitsandbytes")]
        assert len(replaced) >= 12
        for name in replaced:
            model.get_submodule(name).weight.data = dequantise_weight(fresh.get_submodule(name))
    return model


def replays(folder: Path) -> bool:
    """Did the finished run move, skip no step, and does its log lead to the state that it ends with?"""
    from zoedge.core import digests, engine
    from zoedge.log.log import Log
    from zoedge.run import folder as run_folder
    from zoedge.run import replay

    with Log.open(folder / run_folder.LOG_FILE) as log:
        sound = any(g for record in log for g in record.g) and not any(record.flags for record in log)
        run = replay.build_replay_run(log)
        for _ in engine.play(run, len(log)):
            pass
        return sound and log.state.end is not None and digests.digest(run.space).startswith(log.state.end)


def byte_level() -> Any:
    """A byte-level BPE in which ' great' and ' terrible' are one token each."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=500, special_tokens=["<pad>", "<s>", "</s>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    raw.train_from_iterator(
        [" ".join(WORDS[i:] + WORDS[:i]) + " It was great terrible" for i in range(len(WORDS))], trainer
    )
    return PreTrainedTokenizerFast(tokenizer_object=raw, bos_token="<s>", eos_token="</s>", pad_token="</s>")


@pytest.fixture(scope="session")
def tokenizer() -> Any:
    return byte_level()


def save(folder: Path, config: Any, tokenizer: Any, seed: int = 0, spread: float = 0.0, head: str = "CausalLM") -> Path:
    """A model of random weights in `folder`. spread: of what is added to biases and norms, else zeros and ones."""
    import torch
    import transformers

    torch.manual_seed(seed)
    model = getattr(transformers, f"AutoModelFor{head}").from_config(config)
    for p in model.parameters():  # random weights of the usual size say too little: larger ones give losses that differ
        torch.nn.init.normal_(p, std=0.08) if p.dim() > 1 else p.data.add_(torch.randn(p.shape) * spread)
    model.tie_weights()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    settle()
    return folder


@pytest.fixture(scope="session")
def llama(tmp_path_factory: pytest.TempPathFactory, tokenizer: Any) -> Path:
    """A three-layer LLaMA with grouped heads and a tied head, random weights, as a model folder."""
    from transformers import LlamaConfig

    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=64, intermediate_size=128, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=96, tie_word_embeddings=True, bos_token_id=1, eos_token_id=2,
        pad_token_id=2,
    )  # fmt: skip
    return save(tmp_path_factory.mktemp("models") / "llama", config, tokenizer)


@pytest.fixture(scope="session")
def half(llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The LLaMA as published models are: stored in float16."""
    import torch
    from transformers import AutoModelForCausalLM

    folder = tmp_path_factory.mktemp("models") / "half"
    shutil.copytree(llama, folder)
    AutoModelForCausalLM.from_pretrained(llama, dtype=torch.float16).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def opt(tmp_path_factory: pytest.TempPathFactory, tokenizer: Any) -> Path:
    """A two-layer OPT with dropout 0.1 in its configuration (as published), whose tokenizer puts </s> first."""
    from tokenizers.processors import TemplateProcessing
    from transformers import AutoTokenizer, OPTConfig

    config = OPTConfig(
        vocab_size=len(tokenizer), hidden_size=64, ffn_dim=128, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=96, word_embed_proj_dim=64, dropout=0.1, bos_token_id=2, eos_token_id=2, pad_token_id=1,
    )  # fmt: skip
    folder = save(tmp_path_factory.mktemp("models") / "opt", config, tokenizer, seed=1)
    own = AutoTokenizer.from_pretrained(folder)
    own.backend_tokenizer.post_processor = TemplateProcessing(single="</s> $A", special_tokens=[("</s>", 2)])
    own.save_pretrained(folder)
    return folder


def masking(raw: Any) -> Any:
    """A tokenizer with RoBERTa's <s>, </s> and <mask> over a backend in which they are 1, 2 and new."""
    from tokenizers import AddedToken
    from tokenizers.processors import TemplateProcessing
    from transformers import PreTrainedTokenizerFast

    raw.add_special_tokens([AddedToken("<mask>", lstrip=True)])
    raw.post_processor = TemplateProcessing(single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)])
    return PreTrainedTokenizerFast(
        tokenizer_object=raw, bos_token="<s>", eos_token="</s>", cls_token="<s>", sep_token="</s>", mask_token="<mask>",
        pad_token="<pad>",
    )  # fmt: skip


def save_masked(folder: Path, own: Any) -> Path:
    """A two-layer RoBERTa with dropout 0.1 in its configuration and random weights, as a model folder."""
    from transformers import RobertaConfig

    config = RobertaConfig(
        vocab_size=len(own), hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=97, type_vocab_size=1, bos_token_id=1, eos_token_id=2, pad_token_id=0,
    )  # fmt: skip
    return save(folder, config, own, seed=11, spread=0.2, head="MaskedLM")


@pytest.fixture(scope="session")
def roberta(tmp_path_factory: pytest.TempPathFactory, tokenizer: Any) -> Path:
    """A small RoBERTa over the tokenizer's vocabulary."""
    raw = type(tokenizer.backend_tokenizer).from_str(tokenizer.backend_tokenizer.to_str())
    return save_masked(tmp_path_factory.mktemp("models") / "roberta", masking(raw))


@pytest.fixture(scope="session")
def families(tmp_path_factory: pytest.TempPathFactory, tokenizer: Any, llama: Path, opt: Path) -> dict[str, Path]:
    """The two above, and: an untied LLaMA stored in float16 without grouped heads; an OPT built as OPT-350M is.

    The other families have what tells them from LLaMA: windows, biases, heads of another size than hidden / heads.
    """
    from transformers import GemmaConfig, GPTNeoXConfig, LlamaConfig, MistralConfig, OPTConfig, Qwen2Config, Qwen3Config

    root = tmp_path_factory.mktemp("families")
    sizes = dict(
        vocab_size=len(tokenizer), hidden_size=64, num_hidden_layers=3, num_attention_heads=4,
        max_position_embeddings=96, bos_token_id=1, eos_token_id=2, pad_token_id=2,
    )  # fmt: skip
    grouped = {"intermediate_size": 128, "num_key_value_heads": 2}
    untied = LlamaConfig(**sizes, intermediate_size=128, tie_word_embeddings=False, dtype="float16")
    after = OPTConfig(**sizes, ffn_dim=128, word_embed_proj_dim=32, do_layer_norm_before=False, dropout=0.1)
    made = {
        "llama_untied_half": untied,
        "opt_350m": after,
        "mistral": MistralConfig(**sizes, **grouped, sliding_window=64, tie_word_embeddings=False),
        "qwen2": Qwen2Config(**sizes, **grouped, use_sliding_window=False, sliding_window=8),
        "qwen3": Qwen3Config(**sizes, **grouped, head_dim=32, tie_word_embeddings=True),
        "gemma": GemmaConfig(**sizes, **grouped | {"num_key_value_heads": 1}, head_dim=32, attention_dropout=0.1),
        "gpt_neox": GPTNeoXConfig(**sizes, intermediate_size=128, use_parallel_residual=False, hidden_dropout=0.1),
        "pythia": GPTNeoXConfig(**sizes, intermediate_size=128),
    }
    for i, (name, config) in enumerate(made.items(), 2):
        save(root / name, config, tokenizer, seed=i, spread=0.2)
    return {"llama": llama, "opt": opt, **{name: root / name for name in made}}


@pytest.fixture(scope="session")
def reviews(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """80 labelled rows of like length variety as JSON lines."""
    path = tmp_path_factory.mktemp("data") / "reviews.jsonl"
    with path.open("w") as file:
        for i in range(80):
            good = i % 2
            words = [WORDS[(i * 7 + j * 3) % len(WORDS)] for j in range(3 + i % 9)]
            text = " ".join([*words, "fun bright" if good else "dull boring"])
            file.write(json.dumps({"text": text, "label": "positive" if good else "negative"}) + "\n")
    return path


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch, request: Any) -> None:
    """Every session's tests share one cache folder of their own; `real` tests use the user's."""
    if not request.node.get_closest_marker("real"):
        shared = tmp_path_factory.getbasetemp() / "zoedge-cache"
        monkeypatch.setenv("ZOEDGE_CACHE", str(shared))


@pytest.fixture
def recipe_file(tmp_path: Path, llama: Path, reviews: Path) -> Path:
    """A recipe over the tiny LLaMA that trains in seconds."""
    return tiny_recipe(tmp_path, llama, reviews)


def tiny_recipe(folder: Path, llama: Path, reviews: Path) -> Path:
    path = folder / "tiny.yaml"
    path.write_text(
        f"""version: 1
name: tiny
seed: 7
model: {{source: "{llama}", quantization: nf4}}
data: {{train: "{reviews}", valid: {{split: 10}}, test: {{split: 20}}, max_length: 64}}
task: {{name: classify, prompt: "{{text}} It was", options: {{negative: " terrible", positive: " great"}}}}
space: {{name: lora, rank: 4, alpha: 8, targets: [q_proj, v_proj], layers: last 2}}
noise: rademacher
estimator: {{name: two_sided, eps: 1e-2}}
rule: {{name: sgd, lr: 1e-2, schedule: linear}}
train: {{steps: 24, batch: 4}}
eval: {{every: 10, calibrate: 16}}
log: {{hash_every: 5}}
output: {{dir: "{folder / "runs"}"}}
"""
    )
    return path


TINY = """version: 1
name: tiny
model: {source: model, quantization: none}
data: {train: rows.jsonl, valid: {split: 10}, max_length: 64}
task: {name: classify, prompt: "{text} It was", options: {negative: " terrible", positive: " great"}}
space: {name: lora, rank: 2, targets: [q_proj], layers: last 1}
rule: {name: sgd, lr: 1e-2}
train: {steps: 4, batch: 4}
eval: {every: 4, calibrate: 4}
log: {hash_every: 2}
"""


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory, llama: Path, reviews: Path) -> Path:
    """A user's folder: my.yaml, rows.jsonl, model/ and runs/tiny/, a finished run of four steps with its adapter."""
    from zoedge.cli import app

    folder = tmp_path_factory.mktemp("finished")
    shutil.copytree(llama, folder / "model")
    shutil.copyfile(reviews, folder / "rows.jsonl")
    (folder / "my.yaml").write_text(TINY)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("ZOEDGE_CACHE", str(tmp_path_factory.getbasetemp() / "zoedge-cache"))
        app(["finetune", "my.yaml", "--quiet"], standalone_mode=False)
    return folder


class Done(NamedTuple):
    code: int
    out: str
    err: str


@pytest.fixture
def zoedge(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Done]:
    """A command as a user types it."""
    from zoedge.cli import main

    def run(*args: Any) -> Done:
        monkeypatch.setattr(sys, "argv", ["zoedge", *map(str, args)])
        code = 0
        try:
            main()
        except SystemExit as e:
            code = int(e.code or 0)
        done = Done(code, *capsys.readouterr())
        assert "Traceback" not in done.err
        return done

    return run


@pytest.fixture
def worse(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """The losses of some slots are so many times what they are: like any loss a function of the log so far."""

    from zoedge.core import oracle

    def by(factor: float, slots: range) -> None:
        real = oracle.StepOracle.losses

        def losses(self: Any, points: Any) -> list[float]:
            found = real(self, points)
            if self.seq in slots:
                found = [x * factor for x in found]
                self.asked[-len(found) :] = found
            return found

        monkeypatch.setattr(oracle.StepOracle, "losses", losses)

    return by

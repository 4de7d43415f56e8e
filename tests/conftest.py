"""Tiny models made on the spot, stricter settings than users get, and a cache of the tests' own."""

from __future__ import annotations

import os
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from helpers.commands import Done
from helpers.models import byte_level, masking, save, save_masked, settle
from helpers.recipes import TINY, tiny_recipe, write_reviews

from zoedge.scoring.sources import places

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # `&` and nohup have it ignored, and children would too
    signal.signal(signal.SIGINT, signal.default_int_handler)
pytest.register_assert_rewrite("helpers.methods", "helpers.runs", "helpers.scores")
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["ZOEDGE_OFFLINE"] = "1"
os.environ.setdefault("OMP_NUM_THREADS", "1")  # tiny models: threads cost more than they give


def pytest_runtest_teardown() -> None:
    settle()
    if "torch" in sys.modules:  # a run sets the threads of its process, and a log's session names them
        sys.modules["torch"].set_num_threads(int(os.environ["OMP_NUM_THREADS"]))


@pytest.fixture(scope="session")
def tokenizer() -> Any:
    return byte_level()


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
    write_reviews(path)
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


@pytest.fixture
def zoedge(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Done]:
    """A command as a user types it."""
    from zoedge.cli import main

    def run(*args: Any) -> Done:
        monkeypatch.setattr(sys, "argv", ["zoedge", *map(str, args)])
        places._places.set(())  # a process of its own knows nothing of where other commands' runs began
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


@pytest.fixture
def unsynced(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let logs be written without waiting for the disk."""
    monkeypatch.setattr(os, "fdatasync", lambda fd: None)
    monkeypatch.setattr(os, "fsync", lambda fd: None)

"""Tiny models of random weights, their tokenizers, and transformers' own forward as reference."""

from __future__ import annotations

import gc
import sys
from pathlib import Path
from typing import Any

WORDS = "a the film is was it great terrible very dull bright story of and but so good bad plot actor scene fun boring".split()


def settle() -> None:
    """A collection, which every load of a model ends with, need not look at the libraries again: two thirds of a load."""
    if len(sys.modules) > imported[-1] + 100:
        imported.append(len(sys.modules))
        gc.collect()
        gc.freeze()


imported = [0]


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

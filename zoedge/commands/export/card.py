"""This module makes the model card and the tokenizer files that every export carries."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ...errors import make_printable
from .folder import HUB_ID, encode_json


def read_tokenizer_files(folder: Path | None) -> Iterator[tuple[str, bytes]]:
    """Yield the tokenizer's files and its chat template, each as (name, bytes). folder: the base's; None: there are none."""
    from ...scoring.models.loading import load_tokenizer

    if folder is None:
        return
    with tempfile.TemporaryDirectory() as draft:
        load_tokenizer(folder).save_pretrained(draft)
        for path in sorted(Path(draft).iterdir()):
            raw = path.read_bytes()
            yield path.name, encode_json(scrub_config(json.loads(raw))) if path.name == "tokenizer_config.json" else raw


def scrub_config(config: dict[str, Any]) -> dict[str, Any]:
    """Return a tokenizer's or model's configuration without what it says of the machine that wrote it.

    transformers notes in it from which path and with which switches a file was loaded.
    """
    switches = ("is_local", "local_files_only")
    paths = {k for k, v in config.items() if isinstance(v, str) and os.path.isabs(v) and not k.endswith("_token")}
    return {k: v for k, v in config.items() if k not in paths and k not in switches}


LOADING_ARGUMENTS = {
    "nf4": "load_in_4bit=True, bnb_4bit_quant_type='nf4', bnb_4bit_use_double_quant={double_quant}",
    "fp4": "load_in_4bit=True, bnb_4bit_quant_type='fp4', bnb_4bit_use_double_quant={double_quant}",
    "int8": "load_in_8bit=True, llm_int8_threshold=0.0",
}


def render_model_card(facts: dict[str, Any], dtype: str = "") -> bytes:
    """Return the model card, which says what the export is, of which base and log it is, and how it is loaded.

    Args:
        facts: the marker's fields, of an adapter also its title.
        dtype: of a merged model, the type of its weights.
    """
    source, quantized = facts["source"], facts["quantization"] in LOADING_ARGUMENTS
    scheme, auto = LOADING_ARGUMENTS.get(facts["quantization"], "").format(**facts), f"AutoModelFor{facts['head']}"
    named = f"base_model: {source}\n" if HUB_ID.fullmatch(source) else ""
    if facts["kind"] == "peft":
        title, library = facts["title"], "peft"
        at = f", revision={facts['revision']!r}" if facts["revision"] else ""
        option = f", quantization_config=BitsAndBytesConfig({scheme})" if quantized else ""
        lines = [
            f"from transformers import {auto}{', BitsAndBytesConfig' if quantized else ''}",
            "from peft import PeftModel",
            f"base = {auto}.from_pretrained({source!r}{at}{option})" + ("" if named else "  # its folder"),
            "model = PeftModel.from_pretrained(base, FOLDER)",
        ]
    else:
        title, library = f"merged model, {dtype}", "transformers"
        lines = [
            f"from transformers import {auto}",
            f"model = {auto}.from_pretrained(FOLDER)",
        ]
    double = ", double quantisation" if facts["quantization"] in ("nf4", "fp4") and facts["double_quant"] else ""
    rows = [
        ("base", f"{make_printable(source)}{' at ' + make_printable(facts['revision']) if facts['revision'] else ''}"),
        ("base sha256", facts["base"]),
        ("quantisation in training", facts["quantization"] + double),
        ("recipe", facts["recipe"]),
        ("steps", facts["steps"]),
        ("log fingerprint", facts["log"]),
        ("state sha256", facts["state"]),
        ("trained together, each loaded onto the one before", ", ".join(facts.get("together", [])) or None),
    ]
    facts_list = "".join(f"- {name}: {value}\n" for name, value in rows if value is not None)
    return (
        f"---\nlibrary_name: {library}\n{named}tags:\n- zoedge\n- zeroth-order\n---\n\n# {facts['recipe']}: {title}\n\n"
        f"Fine-tuned with zoedge by forward passes alone.\n\n{facts_list}\n```python\n" + "\n".join(lines) + "\n```\n"
    ).encode()

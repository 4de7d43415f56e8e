"""This module says how a model whose weights are pickles alone becomes one that zoedge reads."""

from __future__ import annotations

from ...errors import make_printable


def explain_conversion(source: str) -> str:
    """Return the sentence with the command that converts a model's pickles to safetensors, once.

    torch reads them with weights_only, which makes tensors and nothing else of a pickle. source: a folder or a hub id.
    """
    command = (
        "from transformers import AutoModelForCausalLM as M, AutoTokenizer as T; "
        f"M.from_pretrained('{make_printable(source, 300)}', weights_only=True, dtype='auto').save_pretrained('NEW'); "
        f"T.from_pretrained('{make_printable(source, 300)}').save_pretrained('NEW')"
    )
    return (
        "Convert it once, with weights_only, which makes tensors of a pickle and runs nothing: "
        f'python -c "{command}" - and write model.source: NEW.'
    )

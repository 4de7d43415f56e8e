"""`--check`: a fresh process loads the export and compares its logits with those of training."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from ...core.child import ChildFailed, answer_parent, ask_python
from ...core.types import Space
from ...errors import DataError
from ...methods.spaces.lora import LoraSpace
from ...recipe.sections import Model
from ...run.trained import Trained
from ...scoring.models.base import HEAD_COLUMNS, Base
from .gguf import MAX_DIFFERENCE
from .peft import find_adapters

# -- the proof


def check_export(kind: str, folder: Path, trained: Trained) -> float:
    """Largest |difference| of logits between an export, loaded in a fresh process, and the trained model here.

    peft: the base loaded as for training, then PeftModel.from_pretrained. merged: the plain model in float32.
    gguf-lora: `folder` is a file, and the difference is one of weights (export_gguf.difference).
    Two models are in memory meanwhile, one a process. DataError: it does not load.
    """
    return check_exports([(kind, folder, trained)])[0]


def check_exports(jobs: Sequence[tuple[str, Path, Trained]]) -> list[float]:
    """`check` of several exports in one fresh process."""
    with tempfile.TemporaryDirectory() as draft:
        asked = []
        for i, (kind, folder, trained) in enumerate(jobs):
            path = Path(draft) / f"{i}.safetensors"
            safetensors.torch.save_file(build_reference(kind, trained), path)
            spec = trained.recipe.model.model_dump()
            asked.append({"kind": kind, "folder": str(folder), "spec": spec, "reference": str(path)})
        try:
            return [float(x) for x in ask_python(["-m", __name__], "--check: the process that loads it", asked)]
        except ChildFailed as e:
            raise DataError(f"The export does not load in a fresh process: {e.reason}") from None


def build_reference(kind: str, trained: Trained) -> dict[str, Tensor]:
    """What the fresh process compares with: the trained matrices, of which a GGUF file is; else ids and their logits."""
    if kind == "gguf-lora":
        space = trained.space
        assert isinstance(space, LoraSpace), "no other space has a GGUF file"
        matrices = {name: value.detach().cpu().clone() for name, value in space.tensors()}
        return {**matrices, "scale": torch.tensor(space.scale, dtype=torch.float64)}
    ids = make_probe_ids(trained.base.model.config.vocab_size, trained.base.context_length)
    return {"ids": ids, "logits": compute_logits(trained.base, trained.space, ids)}


def make_probe_ids(vocabulary: int, context: int) -> Tensor:
    """Token ids [2, <= 32], spread over the vocabulary, always the same."""
    length = min(32, context)
    return ((torch.arange(2 * length) * 7919 + 11) % vocabulary).view(2, length)


@torch.inference_mode()
def compute_logits(base: Base, space: Space, ids: Tensor) -> Tensor:
    """float32 logits [2, T, vocabulary] of the trained model, by the forward that training scores with."""
    everywhere: Any = SimpleNamespace(
        ids=ids,
        rows=torch.arange(ids.shape[1]).expand(len(ids), -1),
        index=range(len(ids)),
        branches=None,
        examples=SimpleNamespace(tokens=ids),
    )
    with space.visit([lambda leaf: None]):
        h = base.hidden_states(everywhere, 1)
    size = base.model.config.vocab_size
    parts = [torch.arange(i, min(i + HEAD_COLUMNS, size)) for i in range(0, size, HEAD_COLUMNS)]
    return torch.cat([base.logits(h, some).cpu() for some in parts], dim=-1)


@torch.inference_mode()
def measure_difference(kind: str, folder: str, spec: dict[str, Any], reference: str) -> float:
    """The fresh process's half of `check`."""
    from ...scoring.models.loading import auto_class, load_base, make_deterministic

    known = safetensors.torch.load_file(reference)
    if kind == "gguf-lora":
        from . import gguf

        return gguf.measure_difference(folder, spec, known)
    if kind == "merged":
        device = torch.device("cpu")
        model: Any = auto_class(Path(folder))[0].from_pretrained(folder, dtype=torch.float32, local_files_only=True)
    else:
        from peft import PeftModel

        base = load_base(Model(**spec))
        device, model = base.device, base.model
        for inner in find_adapters(Path(folder)):
            model = PeftModel.from_pretrained(model, inner)
        make_deterministic(base.model, base.dtype)  # PEFT has put everything into evaluation mode
        base.model.get_output_embeddings().float()  # logits in float32, as `trained` has them
        type(model).base_model_torch_dtype = base.dtype  # a prefix is cast to it; it is that of the first parameter
    logits = model(input_ids=known["ids"].to(device)).logits.float().cpu()
    return float((logits[:, -known["ids"].shape[1] :] - known["logits"]).abs().max())  # virtual tokens come first


def check_gguf(path: Path, trained: Trained) -> float:
    """Largest |difference| of a weight, as `difference` finds it in a fresh process. DataError: it is not exact."""
    if not (found := check_export("gguf-lora", path, trained)) <= MAX_DIFFERENCE:
        raise DataError(f"{path}: its weights differ from the trained ones by up to {found:.3g}.")
    return found


if __name__ == "__main__":
    sys.exit(answer_parent(lambda jobs: [measure_difference(**job) for job in jobs]))

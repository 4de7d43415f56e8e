"""This module is `--check`: a fresh process loads an export and compares its logits with those of training."""

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
from ...errors import DataError, ReplayError
from ...methods.spaces.aligned import AlignedSpace
from ...methods.spaces.lora import LoraSpace
from ...recipe.sections import Model
from ...run.trained import Trained
from ...scoring.models.base import DTYPES, HEAD_COLUMNS, Base
from .gguf import MAX_DIFFERENCE
from .peft import find_adapters

# The largest difference of a logit that rounding weights or a forward to a type explains, as a share of the logits' standard
# deviation. Measured over the 3 million logits of SmolLM2-135M merged in fp16: .0342 of 4.43. bf16 has 8 times the error.
LOGIT_ROUNDING = {"fp32": 2e-3, "fp16": 0.1, "bf16": 0.5}

# -- the proof


def check_export(kind: str, folder: Path, trained: Trained) -> float:
    """Load an export in a fresh process, compare it with the trained model here, and return the largest |difference|.

    Two models are in memory meanwhile, one in each process.

    Args:
        kind: peft (the base is loaded as for training, then PeftModel.from_pretrained), merged (the plain model in float32), or
            gguf-lora, whose differences are of weights, not of logits.
        folder: of gguf-lora, the file.

    Raises:
        DataError: the export does not load.
    """
    return check_exports([(kind, folder, trained)])[0]


def check_exports(jobs: Sequence[tuple[str, Path, Trained]]) -> list[float]:
    """Compare several exports, each as `check_export` does, in one fresh process, and return the difference of each."""
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
    """Return what the fresh process compares with, by name.

    For a GGUF file these are the trained matrices and their scale; for the other kinds, token ids and their logits.
    """
    if kind == "gguf-lora":
        space = trained.space
        assert isinstance(space, (LoraSpace, AlignedSpace)), "no other space has a GGUF file"
        matrices = {name: value.detach().cpu().clone() for name, value in space.tensors()}
        return {**matrices, "scale": torch.tensor(space.scale, dtype=torch.float64)}
    ids = make_probe_ids(trained.base.model.config.vocab_size, trained.base.context_length)
    return {"ids": ids, "logits": compute_logits(trained.base, trained.space, ids)}


def make_probe_ids(vocabulary: int, context: int) -> Tensor:
    """Return token ids [2, <= 32] that are spread over the vocabulary and are always the same."""
    length = min(32, context)
    return ((torch.arange(2 * length) * 7919 + 11) % vocabulary).view(2, length)


@torch.inference_mode()
def compute_logits(base: Base, space: Space, ids: Tensor) -> Tensor:
    """Return float32 logits [2, T, vocabulary] of the trained model, by the forward that training scores with."""
    everywhere: Any = SimpleNamespace(
        ids=ids,
        rows=torch.arange(ids.shape[1]).expand(len(ids), -1),
        index=range(len(ids)),
        branches=None,
        examples=SimpleNamespace(tokens=ids, whole=None),
    )
    with space.visit([lambda leaf: None]):
        h = base.hidden_states(everywhere, 1)
    size = base.model.config.vocab_size
    parts = [torch.arange(i, min(i + HEAD_COLUMNS, size)) for i in range(0, size, HEAD_COLUMNS)]
    return torch.cat([base.logits(h, columns).cpu() for columns in parts], dim=-1)


@torch.inference_mode()
def measure_difference(kind: str, folder: str, spec: dict[str, Any], reference: str) -> float:
    """Load the export in this fresh process, and return its largest |difference| from the reference file."""
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
    """Return the largest |difference| of a weight, as a fresh process finds it. ReplayError: it is more than MAX_DIFFERENCE."""
    if not (difference := check_export("gguf-lora", path, trained)) <= MAX_DIFFERENCE:
        raise ReplayError(f"{path}: its weights differ from the trained ones by up to {difference:.3g}.")
    return difference


def check_logits(kind: str, folder: Path, trained: Trained, dtype: str) -> float:
    """Return the largest |difference| of a logit, as a fresh process finds it.

    Args:
        kind: peft or merged.
        folder: the export.
        trained: the trained model here.
        dtype: the type of the export's weights: fp32, fp16 or bf16.

    Raises:
        DataError: the export does not load.
        ReplayError: the difference is more than rounding to that type, or to the type of the forward, makes.
    """
    difference = check_export(kind, folder, trained)
    spread = float(build_reference(kind, trained)["logits"].std())
    forward = next(name for name, kind_of in DTYPES.items() if kind_of == trained.base.dtype)
    limit = spread * max(LOGIT_ROUNDING[dtype], LOGIT_ROUNDING[forward])
    if not difference <= limit:
        raise ReplayError(
            f"{folder}: its logits differ from the trained model's by up to {difference:.3g}, where rounding makes at most "
            f"{limit:.2g}: it is not the trained model. Do not use it, and please report how the base was made."
        )
    return difference


if __name__ == "__main__":
    sys.exit(answer_parent(lambda jobs: [measure_difference(**job) for job in jobs]))

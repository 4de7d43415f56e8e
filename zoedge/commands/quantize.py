"""`zoedge quantize`: a model's quantised weights in the cache, ahead of its first run."""

from __future__ import annotations

from pathlib import Path

from ..errors import UsageError
from ..recipe.sections import Model
from ..scoring.models.loading import prepare_folder


def quantize_model(source: str, scheme: str, double_quant: bool = True) -> tuple[Path, int]:
    """Quantise a model into the cache, and return the folder and its size in bytes.

    Args:
        source: a folder, a packaged model, or a hub id.
        scheme: nf4, fp4 or int8.
        double_quant: of nf4 and fp4, whether the scales are quantised too.

    Raises:
        UsageError: no such scheme.
        DataError: the model cannot be found or read.
    """
    if scheme not in ("nf4", "fp4", "int8"):
        raise UsageError(f"--to: '{scheme}' is not nf4, fp4 or int8.")
    table = {"source": source, "quantization": scheme, "double_quant": double_quant}
    _, folder, _ = prepare_folder(Model.model_validate(table))
    return folder, sum(path.stat().st_size for path in folder.iterdir())

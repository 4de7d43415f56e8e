"""Any bytes as an adapter's safetensors file: what the pre-check lets pass, the library reads or refuses."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.remove(str(Path(__file__).parent))  # this file's name is the library's
import safetensors.torch

sys.path.append(str(Path(__file__).parent))
import atheris
from common import fuzz

with atheris.instrument_imports(include=["zoedge.commands.export.folder", "zoedge.scoring.models.loading"]):
    from zoedge.commands.export.peft import add_metadata, encode_tensors, parse_header
    from zoedge.errors import DamagedError


def target(data: bytes) -> None:
    """Of every second input the length of the header is made right, or few get past it."""
    if data[:1] == b"s":
        end = data.rfind(b"}") + 1
        data = max(end - 1, 0).to_bytes(8, "little") + data[1:]
    header, start = parse_header(data, Path("x"))
    try:
        tensors = safetensors.torch.load(data)
    except (safetensors.SafetensorError, ValueError, RuntimeError):  # as load_adapter has it
        raise DamagedError("refused by the library") from None
    assert tensors.keys() == header.keys() - {"__metadata__"} and 8 <= start <= len(data)


if __name__ == "__main__":
    import torch

    raw, payload = encode_tensors({"a.b.lora_A": torch.arange(6.0).view(2, 3), "a.b.lora_B": torch.zeros(3, 2)})
    whole = add_metadata(raw, payload=payload, log="00")
    fuzz(target, [raw, whole, b"s" + whole[8:], b"s{}", b""])

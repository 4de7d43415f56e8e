"""This module writes JSON with exactly one reading: the same value always gives the same bytes, and other bytes are refused."""

from __future__ import annotations

import json
import math
import re
from typing import Any

HEX_FLOAT = re.compile(r"-?0x[01]\.[0-9a-f]+p[+-][0-9]+")


def encode_canonical(value: Any) -> bytes:
    """Encode a value as JSON with sorted keys and floats as hexadecimal strings: the same bytes on every machine."""

    def plain(v: Any) -> Any:
        if isinstance(v, float):
            return v.hex()
        if isinstance(v, dict):
            return {str(k): plain(x) for k, x in v.items()}
        return [plain(x) for x in v] if isinstance(v, (list, tuple)) else v

    return json.dumps(plain(value), sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def decode_canonical(block: bytes) -> Any:
    """Decode what `encode_canonical` wrote: strings that are hexadecimal floats become floats again."""

    def rich(v: Any) -> Any:
        if isinstance(v, str) and HEX_FLOAT.fullmatch(v):
            return x if (x := float.fromhex(v)).hex() == v else v
        if isinstance(v, dict):
            return {k: rich(x) for k, x in v.items()}
        return [rich(x) for x in v] if isinstance(v, list) else v

    return rich(json.loads(block.decode()))


def null_nonfinite(value: Any) -> Any:
    """Return a value with None for every number in it that is not finite, because JSON has no NaN."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: null_nonfinite(inner) for key, inner in value.items()}
    return [null_nonfinite(inner) for inner in value] if isinstance(value, (list, tuple)) else value

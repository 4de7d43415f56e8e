"""This module reads which blocks of a model a recipe chooses."""

from __future__ import annotations

from ...errors import DataError


def select_layers(layers: list[int] | str, count: int) -> list[int]:
    """Return a recipe's space.layers as sorted numbers of blocks. DataError: the model of `count` blocks has no such ones.

    layers: "all", "last k", or a list of numbers such as [4, 5].
    """
    if layers == "all":
        return list(range(count))
    if isinstance(layers, str):
        word, _, number = layers.partition(" ")
        if word != "last" or not number.isdigit() or not 1 <= int(number) <= count:
            raise DataError(f"space.layers: '{layers}' is not all, 'last 1' .. 'last {count}', or a list of numbers.")
        return list(range(count - int(number), count))
    if not layers or min(layers) < 0 or max(layers) >= count or len(set(layers)) != len(layers):
        raise DataError(f"space.layers: {layers} must be different numbers in 0..{count - 1}.")
    return sorted(layers)

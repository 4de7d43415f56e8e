"""This module caches on the disk what the lower blocks of a model make of each example.

Where only the top blocks are trained, what enters them is the same for every point, query and epoch, so that it is computed
once. It is read back with preadv, which costs page cache but no resident memory. The bits that are read are those that were
computed.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ...errors import StorageError

if TYPE_CHECKING:
    from ..tasks._examples import Examples

CHUNK_TOKENS = 2048  # padded token rows of a forward that fills the cache


class TrunkCache:
    """The hidden states of every sequence of a set, in a file without a name that is gone with the process.

    Attributes:
        width: the elements of a token's hidden state.
        dtype: the type of these elements.
        device: where `read` puts them.
        folder: where the file is.
    """

    def __init__(self, examples: Examples, width: int, dtype: torch.dtype, device: torch.device, folder: Path):
        self.examples = examples  # Base.kept is keyed by id(examples), which may be reused once the object is gone
        self.tokens: Sequence[Sequence[int]] = examples.tokens
        self.width, self.dtype, self.device = width, dtype, device
        self.bytes = width * dtype.itemsize
        self.starts = [0]
        for ids in self.tokens:
            self.starts.append(self.starts[-1] + len(ids) * self.bytes)
        self.folder, self.file = folder, tempfile.TemporaryFile(dir=folder)

    def iterate_chunks(self) -> Iterator[tuple[list[int], Tensor]]:
        """Yield all sequences once, those of like length together: their numbers, and ids [S, T] padded on the right with 0."""
        order = sorted(range(len(self.tokens)), key=lambda i: (len(self.tokens[i]), i))
        while order:
            longest, size = len(self.tokens[order[-1]]), 1
            while size < len(order) and longest * (size + 1) <= CHUNK_TOKENS:
                size += 1
            chunk, order = order[-size:], order[:-size]
            ids = torch.zeros(size, longest, dtype=torch.long)
            for row, i in zip(ids, chunk):
                row[: len(self.tokens[i])] = torch.tensor(self.tokens[i])
            yield chunk, ids

    def write(self, chunk: list[int], h: Tensor) -> None:
        """Store the hidden states h, [S, T, width], of the sequences with these S numbers. StorageError: the disk is full."""
        for i, states in zip(chunk, h.cpu()):
            data = states[: len(self.tokens[i])].contiguous().view(torch.uint8).numpy()
            view = memoryview(data).cast("B")
            at = self.starts[i]
            try:
                while view:
                    done = os.pwrite(self.file.fileno(), view, at)
                    view, at = view[done:], at + done
            except OSError as e:
                raise StorageError(
                    f"{self.folder}: cannot write the trunk cache ({self.starts[-1]:,} bytes): {e.strerror}. Free space "
                    "there, or choose another output.dir."
                ) from e

    def read(self, index: Sequence[int], length: int) -> Tensor:
        """Return the hidden states of some sequences, [len(index), length, width].

        They are zero after each sequence's end, because attention multiplies what it masks by zero: it must be finite.
        """
        h = torch.zeros(len(index), length, self.width, dtype=self.dtype)
        for row, i in zip(h.view(torch.uint8).numpy(), index):
            size = self.starts[i + 1] - self.starts[i]
            count = os.preadv(self.file.fileno(), [memoryview(row).cast("B")[:size]], self.starts[i])
            if count != size:
                raise OSError(f"the trunk cache gave {count} of {size} bytes")
        return h.to(self.device)

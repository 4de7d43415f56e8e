"""The lower layers' outputs, computed once an example and kept on disk.

When only the top blocks are trained, what enters them is the same for every point, query and epoch. It is read back
with pread, so it costs page cache and no resident memory. Exact: what is read is what was computed.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...errors import StorageError

CHUNK_TOKENS = 2048  # padded rows of a chunk


class TrunkCache:
    """examples: sequences with `.tokens` (list of token id lists). The file has no name: it goes with the process."""

    def __init__(self, examples: Any, width: int, dtype: torch.dtype, device: torch.device, folder: Path):
        self.examples = examples  # held: Base.kept goes by id(), which is used again once an object is gone
        self.tokens: Sequence[Sequence[int]] = examples.tokens
        self.width, self.dtype, self.device = width, dtype, device
        self.bytes = width * dtype.itemsize
        self.starts = [0]
        for ids in self.tokens:
            self.starts.append(self.starts[-1] + len(ids) * self.bytes)
        self.folder, self.file = folder, tempfile.TemporaryFile(dir=folder)

    def chunks(self) -> Iterator[tuple[list[int], Tensor]]:
        """Sequences of like length together: (their numbers, ids [S, T] padded on the right with 0)."""
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
        """[len(index), length, width], zero after each sequence's end (masked keys must be finite)."""
        h = torch.zeros(len(index), length, self.width, dtype=self.dtype)
        for row, i in zip(h.view(torch.uint8).numpy(), index):
            size = self.starts[i + 1] - self.starts[i]
            got = os.preadv(self.file.fileno(), [memoryview(row).cast("B")[:size]], self.starts[i])
            if got != size:
                raise OSError(f"the trunk cache gave {got} of {size} bytes")
        return h.to(self.device)

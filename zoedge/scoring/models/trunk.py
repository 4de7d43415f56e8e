"""This module caches on the disk what the lower blocks of a model make of each sequence.

Where only the top blocks are trained, what enters them is the same for every point, query and epoch, so that it is computed
once, when it is first read. Sequences are computed in blocks, whose members and padding depend on the set and on which of its
rows a run reads, but not on the order of reading: so the bits do not depend on a run's history. They are read back with
preadv, which costs page cache but no resident memory.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from ...errors import StorageError
from ..sources.cache import print_progress
from ..sources.file_digests import without_memos
from .trunk_blocks import TrunkBlock
from .trunk_file import BlockFile
from .trunk_store import TrunkBase, trunk_key

if TYPE_CHECKING:
    from ..tasks._examples import Examples

ATTENTIONS = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH, SDPBackend.CUDNN_ATTENTION]


class TrunkCache:
    """The hidden states of the sequences of a set, in a file.

    Attributes:
        examples: the set; it is held, because `Base.kept` is keyed by its id.
        blocks: its sequences, as they are computed.
        file: where the blocks are.
    """

    def __init__(self, examples: Examples, blocks: list[TrunkBlock], base: TrunkBase, folder: Path):
        """Open a cache, whose blocks may be filled already where the base's store has them.

        Args:
            base: whose lower blocks they are the output of, at its present cut.
            folder: where the file is if it lasts no longer than the process.
        """
        self.examples, self.blocks, self.base, self.folder, self.store = examples, blocks, base, folder, base.store
        self.width, self.dtype, self.device = base.model.config.hidden_size, base.dtype, base.device
        self.threads = torch.get_num_threads()  # of every forward that fills it: the bits may depend on that
        self.key, self.is_checked = b"", False  # of the kept file, and whether the weights are known to be its own
        token_bytes, start = self.width * self.dtype.itemsize, 0
        self.block_of, self.places = [0] * len(examples.tokens), [(0, 0)] * len(examples.tokens)
        for number, block in enumerate(blocks):
            for i in block.numbers:
                size = len(examples.tokens[i]) * token_bytes
                self.block_of[i], self.places[i] = number, (start, size)
                start += size
        self.file = self._open([sum(self.places[i][1] for i in block.numbers) for block in blocks])

    def _open(self, sizes: list[int]) -> BlockFile:
        """Return the file in the store; one that is gone with the process where there is none, or it cannot be written."""
        if self.store is not None:
            tokens = self.examples.tokens
            dtype = str(self.dtype).removeprefix("torch.")
            about = {"below": self.base.cut, "dtype": dtype, "sequences": len(tokens)}
            try:
                self.key = trunk_key(self.base, tokens, self.blocks)
                return self.store.open(self.key, about, sizes)
            except OSError as e:
                self._say_not_kept(e)
        return BlockFile.nameless(self.folder, sizes)

    def _say_not_kept(self, error: OSError) -> None:
        assert self.store is not None
        print_progress(
            f"{self.store.folder}: the lower layers' outputs cannot be kept there ({error.strerror}). They are kept in "
            f"{self.folder} as long as this command runs."
        )

    def fill(self, numbers: Iterable[int] | None = None) -> Iterator[int]:
        """Compute the blocks of some sequences that are not in the file, and yield how many sequences each has; None: of all.

        StorageError: the disk is full.
        """
        wanted = range(len(self.blocks)) if numbers is None else sorted({self.block_of[i] for i in numbers})
        for number in wanted:
            if not self.file.holds(number):
                self._check_weights()
                # with the attention of any other run, also where a run differentiates, whose attention is another
                with use_threads(self.threads), sdpa_kernel(ATTENTIONS):
                    data = self._compute_block(self.blocks[number])
                self._save(number, data)
                yield len(self.blocks[number].numbers)

    def _check_weights(self) -> None:
        """Leave a kept file before the first block that is computed here, if the base's weights are not those of its key.

        The key may come from memos of the files' digests, which do not notice a bit that rots. What is computed of such
        weights would be kept for later runs of the sound ones. Hashing takes far less time than a block.
        """
        if self.is_checked or self.file.path is None:
            return
        self.is_checked = True
        with without_memos():
            key = trunk_key(self.base, self.examples.tokens, self.blocks)
        if key != self.key:
            self.file.file.close()
            self.file = BlockFile.nameless(self.folder, self.file.sizes)

    def _save(self, number: int, data: bytes) -> None:
        """Save a block. Where the cache's disk is full, its other files make room; else this one leaves it, and begins anew.

        StorageError: the disk of `folder` is full, too.
        """
        if self.store is not None and self.file.path is not None:
            self.store.trim(self.store.limit)
            for _ in ("before", "after its other files are gone"):
                try:
                    self.file.save(number, data)
                    return
                except OSError as e:
                    error = e
                    self.store.trim(0)
            self._say_not_kept(error)
            self.file.path.unlink(missing_ok=True)
            self.file.file.close()  # else the disk gets no room
            self.file = BlockFile.nameless(self.folder, self.file.sizes)
        try:
            self.file.save(number, data)
        except OSError as e:
            raise StorageError(
                f"{self.folder}: cannot write the trunk cache ({self.file.size:,} bytes): {e.strerror}. Free space "
                "there, or choose another output.dir."
            ) from e

    def _compute_block(self, block: TrunkBlock) -> bytes:
        """Return the bytes of the hidden states of a block's sequences, one after the other without padding."""
        sequences = [self.examples.tokens[i] for i in block.numbers]
        ids = torch.zeros(len(sequences), block.length, dtype=torch.long)
        for row, sequence in zip(ids, sequences):
            row[: len(sequence)] = torch.tensor(sequence)
        with self.base.around_trunk():
            h = self.base.trunk(ids, torch.tensor(list(map(len, sequences)))).cpu()
        parts = (states[: len(sequence)] for states, sequence in zip(h, sequences))
        return b"".join(part.contiguous().view(torch.uint8).numpy().tobytes() for part in parts)

    def read(self, index: Sequence[int], length: int) -> Tensor:
        """Return the hidden states of some sequences, [len(index), length, width], computed now where they never were.

        They are zero after each sequence's end, because attention multiplies what it masks by zero: it must be finite.
        """
        file = None
        while file is not self.file:  # again, where it has left a full disk meanwhile
            file = self.file
            for _ in self.fill(index):
                pass
        h = torch.zeros(len(index), length, self.width, dtype=self.dtype)
        for row, i in zip(h.view(torch.uint8).numpy(), index):
            start, size = self.places[i]
            self.file.read_into(start, memoryview(row).cast("B")[:size])
        return h.to(self.device)


@contextmanager
def use_threads(count: int) -> Iterator[None]:
    """Let torch compute with so many threads while the context is open."""
    before = torch.get_num_threads()
    if count != before:
        torch.set_num_threads(count)
    try:
        yield
    finally:
        if count != before:
            torch.set_num_threads(before)

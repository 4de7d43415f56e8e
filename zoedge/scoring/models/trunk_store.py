"""This module keeps the files of trunks in the cache between runs, up to a limit: the least recently used goes first.

A file's name is a hash of all that decides its bits: the base and its files, the tokens and how they are cut into forwards, the
types, the libraries, the processor and its threads. A file appears whole, without blocks, under its name; blocks are added in
place by any number of processes, which all write the same bytes.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import secrets
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from ...core.canonical import encode_canonical
from ..sources.cache import cache_folder, print_progress
from ..sources.file_digests import file_sha256
from .environment import Computation, describe_environment
from .trunk_blocks import TrunkBlock
from .trunk_file import MAGIC, PAGE, BlockFile

VERSION = 1  # raised where the code of this package gives other bits
SUFFIX = ".trunk"
DRAFT_SECONDS = 3600  # after so long, a draft is of a process that died
MODEL_NAME_LENGTH = 300  # of the header's 4,096 bytes
BIT_VARIABLES = ("MKL_", "ONEDNN_", "DNNL_", "ATEN_", "KMP_", "TORCH_", "NVIDIA_", "CUBLAS_")


class TrunkBase(Computation, Protocol):
    """What is asked of a base whose lower blocks' output is cached; scoring/models/base.py has the class."""

    digest: bytes
    path: Path
    cut: int
    store: TrunkStore | None
    trunk_dtype: torch.dtype | None

    @property
    def around_trunk(self) -> Callable[[], AbstractContextManager[object]]:
        """What returns a context that is open while they are computed."""

    def trunk(self, ids: Tensor, lengths: Tensor) -> Tensor:
        """Return the output of the blocks below `cut`, [S, T, H], of ids [S, T], padded on the right, and lengths [S]."""


def read_processor_name() -> str:
    """Return the processor's model, by which the libraries choose their kernels."""
    with suppress(OSError), open("/proc/cpuinfo", encoding="utf-8", errors="replace") as file:
        for line in file:
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def trunk_key(base: TrunkBase, tokens: Sequence[Sequence[int]], blocks: Sequence[TrunkBlock]) -> bytes:
    """Return the SHA-256 of what decides the bits of a set's trunk, and where they stand in a file."""
    sequences = hashlib.sha256()
    for block in blocks:
        sequences.update(encode_canonical([block.length, block.numbers]))
        for i in block.numbers:
            sequences.update(torch.tensor(tokens[i], dtype=torch.int32).numpy().tobytes())
    parts = {
        "version": VERSION,
        "base": base.digest.hex(),
        "weights": [file_sha256(path) for path in sorted(base.path.glob("*.safetensors"))],
        "cut": base.cut,
        "sequences": sequences.hexdigest(),
        "stored": str(base.dtype),
        "products": str(base.trunk_dtype or base.dtype),
        "environment": describe_environment(base),
        "processor": read_processor_name(),
        "precision": [torch.get_float32_matmul_precision(), str(torch.backends.cuda.matmul.allow_tf32)],
        "variables": sorted(f"{k}={v}" for k, v in os.environ.items() if k.startswith(BIT_VARIABLES)),
    }
    return hashlib.sha256(encode_canonical(parts)).digest()


@dataclass
class TrunkStore:
    """The cache's folder of trunks, as one run uses it.

    Attributes:
        limit: the bytes that all files may take. A run's own files are removed only after it.
        model: the recipe's name of the base, for people.
    """

    limit: int
    model: str = ""
    folder: Path = field(default_factory=lambda: cache_folder("trunk"))
    opened: set[Path] = field(default_factory=set)

    def open(self, key: bytes, about: dict[str, Any], sizes: Sequence[int]) -> BlockFile:
        """Return the file of a key, a new one where there is none or it is damaged. OSError: the disk refuses.

        Args:
            about: what to write into its header, for people.
            sizes: the bytes of each block.
        """
        path = self.folder / f"{key.hex()[:32]}{SUFFIX}"
        about = {"model": self.model[-MODEL_NAME_LENGTH:], **about}
        head = MAGIC + key
        for _ in range(9):  # another process may remove it meanwhile
            try:
                file = os.fdopen(os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW), "r+b", buffering=0)
            except FileNotFoundError:
                self._create(path, head, about, BlockFile.length(sizes, PAGE))
                continue
            found = BlockFile(file, str(path), sizes, PAGE, path)
            if os.pread(file.fileno(), len(head), 0) == head and os.fstat(file.fileno()).st_size == found.end:
                self.opened.add(path)
                os.utime(path)
                self.trim(self.limit)
                return found
            file.close()
            print_progress(f"{path}: the cached lower layers are damaged, and are computed again.")
            path.unlink(missing_ok=True)
        raise OSError(0, "it is removed again and again")

    def _create(self, path: Path, head: bytes, about: dict[str, Any], size: int) -> None:
        """Write the header of a file, which gets its name when it is whole, unless another process was faster."""
        draft = path.with_name(f".{path.name}.{secrets.token_hex(4)}.draft")
        with draft.open("xb") as file:
            file.write((head + json.dumps(about).encode()).ljust(PAGE, b"\0"))
            file.truncate(size)
        try:
            os.link(draft, path)
        except FileExistsError:
            pass
        except OSError:  # FAT has no second names
            draft.rename(path)
        draft.unlink(missing_ok=True)

    def trim(self, limit: int, spare_own: bool = True) -> None:
        """Remove the least recently used files until all take at most `limit` bytes, and drafts of processes that died.

        spare_own: keep those that this object has opened.
        """
        for draft in self.folder.glob(".*.draft"):
            with suppress(OSError):
                if time.time() - draft.lstat().st_mtime > DRAFT_SECONDS:
                    draft.unlink()
        files = []
        for path in self.folder.glob(f"*{SUFFIX}"):
            with suppress(FileNotFoundError):
                stat = path.lstat()
                files.append((stat.st_mtime, 512 * stat.st_blocks, path))
        total = sum(size for _, size, _ in files)
        for _, size, path in sorted(files):
            if total > limit and not (spare_own and path in self.opened):
                with suppress(OSError):
                    path.unlink()
                    total -= size

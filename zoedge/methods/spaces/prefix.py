"""m keys and values ahead of every block's own (prefix tuning, Li and Liang, arXiv 2101.00190; as MeZO trains it).

They start as the activations of m real tokens, and what is trained is the change from there, so that a log replays without
the base. The batch is repeated for each point, and each copy sees its own prefix. Positions move by m, as in PEFT.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import torch
from annotated_doc import Doc
from torch import Tensor

from ...core.base import SpaceBase
from ...core.types import AbstractNoise, AbstractSpace, Leaf, Natural
from ._master import MasterSpace


@dataclass(frozen=True)
class Prefix(AbstractSpace):
    """The space of keys and values that stand before a text.

    Weight decay draws the prefix to its start, not to zero. Activations are large: steps and eps are larger than LoRA's.
    """

    title: ClassVar[str] = "prefix"
    differentiable: ClassVar[bool] = True
    key: ClassVar[str] = "{}"
    merges: ClassVar[bool] = False

    tokens: Annotated[Natural, Doc("The length m of the prefix.")] = 5
    text: Annotated[
        str,
        Doc(
            "A text whose keys and values the prefix starts from, repeated to fill m. Without it, tokens are "
            "drawn by the seed."
        ),
    ] = ""

    @property
    def points_per_forward(self) -> int:
        """Return how many points its space holds in one forward."""
        return PrefixSpace.width

    @property
    def virtual_tokens(self) -> int:
        """Return the length m of the prefix."""
        return self.tokens

    def describe(self, base: SpaceBase) -> dict[str, Any]:
        """Return the numbers of blocks and of key groups, and the size of a head.

        It reserves m positions. DataError: the base has not so many.
        """
        base.reserve_positions(self.tokens)
        blocks, groups, size = base.keys_shape()
        return {"blocks": blocks, "groups": groups, "size": size}

    def attach(self, base: SpaceBase, seed: int, noise: AbstractNoise) -> PrefixSpace:
        """Make the space over a base, which gives the initial activations and has m positions fewer afterwards."""
        held = self.blank(self.describe(base), seed, noise, base.device)
        start = base.compute_keys_values(base.choose_token_ids(self.tokens, self.text, seed))
        held.begin(base, start)
        return held

    def elements(self, description: Any) -> int:
        """Return how many elements `blank` would train; -1: it is no description of this space."""
        try:
            sizes = [description[word] for word in ("blocks", "groups", "size")]
        except (TypeError, KeyError):
            return -1
        good = all(isinstance(x, int) and x > 0 for x in sizes)
        return 2 * self.tokens * sizes[0] * sizes[1] * sizes[2] if good else -1

    def blank(
        self, description: dict[str, Any], seed: int, noise: AbstractNoise, device: torch.device | str = "cpu"
    ) -> PrefixSpace:
        """Rebuild the space from a log's description alone, without a model and without its first activations."""
        return PrefixSpace(self, description, torch.device(device))

    def exported(self, description: dict[str, Any]) -> dict[str, tuple[int, ...]]:
        """Return the shapes by name of what `PrefixSpace.tensors` yields."""
        return {
            "prompt_embeddings": (self.tokens, 2 * description["blocks"] * description["groups"] * description["size"])
        }

    def peft(self, description: dict[str, Any]) -> dict[str, Any]:
        """Return adapter_config.json without the base's name. Of grouped heads, PEFT counts the groups and their widths."""
        blocks, groups, size = (description[word] for word in ("blocks", "groups", "size"))
        return {
            "peft_type": "PREFIX_TUNING",
            "task_type": "CAUSAL_LM",
            "inference_mode": True,
            "num_virtual_tokens": self.tokens,
            "token_dim": groups * size,
            "num_transformer_submodules": 1,
            "num_attention_heads": groups,
            "num_layers": blocks,
            "encoder_hidden_size": groups * size,
            "prefix_projection": False,
        }

    def summary(self) -> str:
        """Return the length in words."""
        return f"a prefix, {self.tokens} virtual tokens"


class PrefixSpace(MasterSpace):
    """A prefix with its master. `value` is float32: for each block the change of the keys [groups, m, D], then the values'."""

    complete = False

    def __init__(self, options: Prefix, description: dict[str, Any], device: torch.device):
        self.options = options
        blocks, groups, size = (int(description[word]) for word in ("blocks", "groups", "size"))
        self.shape = (blocks, 2, groups, options.tokens, size)
        rows = (groups * options.tokens, size)
        super().__init__("prefix", [(f"{i}.{word}", rows) for i in range(blocks) for word in ("key", "value")], device)

    def describe(self) -> dict[str, Any]:
        """Return the numbers of blocks and of key groups, and the size of a head."""
        return {"blocks": self.shape[0], "groups": self.shape[2], "size": self.shape[4]}

    def begin(self, base: SpaceBase, start: Tensor) -> None:
        """Begin over a base, from the initial keys and values [blocks, 2, groups, m, D] float32."""
        self.base, self.start, self._dtype, self.complete = base, start.flatten(), base.dtype, True

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Yield a row for each token, as PEFT has it: [m, blocks * 2 * groups * D]. It needs `start`, and hence a base."""
        assert self.start is not None
        prefix = (self.start + self.value).view(self.shape)
        yield "prompt_embeddings", prefix.permute(3, 0, 1, 2, 4).flatten(1).contiguous()

    @contextmanager
    def visit(self, deltas: Sequence[Callable[[Leaf], Tensor | None]]) -> Iterator[None]:
        """Put the prefix of each point before the keys and values of every block while the context is open."""
        self.base.past = self.points(deltas).view(-1, *self.shape)
        try:
            yield
        finally:
            self.base.past = None

"""n virtual tokens before every sequence, as embeddings (prompt tuning, Lester et al., arXiv 2104.08691).

They start as the embeddings of real tokens, and what is trained is the change from there, so that a log replays without
the base. The batch is repeated for each point, and each copy gets its own prompt. Positions and scored rows move by n.
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
class Prompt(AbstractSpace):
    """The space of virtual tokens before a text. Weight decay draws the prompt to its start, not to zero."""

    title: ClassVar[str] = "soft prompt"
    differentiable: ClassVar[bool] = True
    key: ClassVar[str] = "{}"
    merges: ClassVar[bool] = False

    tokens: Annotated[Natural, Doc("The number n of virtual tokens.")] = 10
    text: Annotated[
        str,
        Doc(
            "A text whose embeddings the prompt starts from, repeated to fill n. Without it, tokens are drawn by "
            "the seed."
        ),
    ] = ""

    @property
    def points_per_forward(self) -> int:
        """Return how many points its space holds in one forward."""
        return PromptSpace.width

    @property
    def virtual_tokens(self) -> int:
        """Return the number n of virtual tokens."""
        return self.tokens

    def describe(self, base: SpaceBase) -> dict[str, Any]:
        """Return the width of an embedding. It reserves n positions. DataError: the base has not so many."""
        base.reserve_positions(self.tokens)
        return {"width": base.model.get_input_embeddings().weight.shape[1]}

    def attach(self, base: SpaceBase, seed: int, noise: AbstractNoise) -> PromptSpace:
        """Make the space over a base, which gives the initial embeddings and has n positions fewer afterwards."""
        held = self.blank(self.describe(base), seed, noise, base.device)
        start = base.embed_tokens(base.choose_token_ids(self.tokens, self.text, seed))
        held.begin(base, start)
        return held

    def elements(self, description: Any) -> int:
        """Return how many elements `blank` would train; -1: it is no description of this space."""
        try:
            width = description["width"]
            return self.tokens * width if isinstance(width, int) and width > 0 else -1
        except (TypeError, KeyError):
            return -1

    def blank(
        self, description: dict[str, Any], seed: int, noise: AbstractNoise, device: torch.device | str = "cpu"
    ) -> PromptSpace:
        """Rebuild the space from a log's description alone, without a model and without its first embeddings."""
        return PromptSpace(self, description, torch.device(device))

    def exported(self, description: dict[str, Any]) -> dict[str, tuple[int, ...]]:
        """Return the shapes by name of what `PromptSpace.tensors` yields."""
        return {"prompt_embeddings": (self.tokens, description["width"])}

    def peft(self, description: dict[str, Any]) -> dict[str, Any]:
        """Return adapter_config.json without the base's name."""
        return {
            "peft_type": "PROMPT_TUNING",
            "task_type": "CAUSAL_LM",
            "inference_mode": True,
            "num_virtual_tokens": self.tokens,
            "token_dim": description["width"],
            "num_transformer_submodules": 1,
            "prompt_tuning_init": "RANDOM",
        }

    def summary(self) -> str:
        """Return the length in words."""
        return f"a prompt, {self.tokens} virtual tokens"


class PromptSpace(MasterSpace):
    """A soft prompt with its master. `value` is [n * E] float32: the change of the embeddings [n, E] from `start`."""

    complete = False

    def __init__(self, options: Prompt, description: dict[str, Any], device: torch.device):
        self.options = options
        self.shape = (options.tokens, int(description["width"]))
        super().__init__("prompt", [("prompt", self.shape)], device)

    def describe(self) -> dict[str, Any]:
        """Return the width of an embedding."""
        return {"width": self.shape[1]}

    def begin(self, base: SpaceBase, start: Tensor) -> None:
        """Begin over a base, from the initial embeddings [n, E] float32."""
        self.base, self.start, self._dtype, self.complete = base, start.flatten(), base.dtype, True

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Yield the embeddings that PEFT puts before a sequence. They need `start`, and hence a base."""
        assert self.start is not None
        yield "prompt_embeddings", (self.start + self.value).view(self.shape)

    @contextmanager
    def visit(self, deltas: Sequence[Callable[[Leaf], Tensor | None]]) -> Iterator[None]:
        """Put the prompt of each point before every sequence while the context is open."""
        self.base.prompt = self.points(deltas).view(-1, *self.shape)
        try:
            yield
        finally:
            self.base.prompt = None

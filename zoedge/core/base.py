"""This module declares what a space asks of the model that it is trained over. The class is in scoring/models/base.py."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

Layers = list[int] | str  # all, 'last k', or the numbers of blocks


class Projection(Protocol):
    """How a forward computes logits by some rows of the head."""

    def __call__(self, head: nn.Linear, h: Tensor, index: Tensor | slice, /) -> Tensor:
        """Return the logits [..., C] of hidden states h [..., H] by the rows `index` [C] of the head, in float32."""


class HeldTerm(NamedTuple):
    """The matrices of a term of low rank at each point that is held: scale B A, A [points, r, in] and B [points, out, r]."""

    a: Tensor
    b: Tensor
    scale: float


class LowRankTerm(Protocol):
    """What a space adds to the output of a Linear module, by a hook of its own, which the base may compute in its place."""

    def matrices(self) -> HeldTerm | None:
        """Return the matrices at the points that are held; None: no point is held, and nothing is added."""


class SpaceBase(Protocol):
    """A frozen model that spaces hook. Its tensors may be without data while only descriptions are asked for."""

    model: Any  # of transformers
    tokenizer: Any  # likewise
    dtype: torch.dtype  # of the forward
    device: torch.device
    cut: int  # the first block that anything trained changes
    prompt: Tensor | None  # the virtual tokens of the points held: [points, n, E]
    past: Tensor | None  # the keys and values of the points held: [points, blocks, 2, groups, m, D]
    project: Projection
    terms: dict[nn.Module, LowRankTerm]  # of modules to whose output a space adds a term of low rank, and nothing else

    def find_linears(self, layers: Layers, targets: list[str] | str) -> dict[str, nn.Linear]:
        """Return the chosen Linear modules by name, and set `cut` to the lowest of their blocks. DataError: there are none."""

    def find_writers(self, layers: Layers, targets: list[str] | str) -> dict[str, nn.Linear]:
        """Return the chosen modules whose output is added to the hidden states, likewise. targets: auto, for all of them."""

    def set_cut(self, block: int) -> None:
        """Say that nothing below this block is trained."""

    def reserve_positions(self, tokens: int) -> None:
        """Keep positions ahead of every sequence free for virtual tokens, and set `cut` to 0. DataError: there is no room."""

    def choose_token_ids(self, count: int, text: str, seed: int) -> Tensor:
        """Return the ids [count] of a text, repeated to fill, or ids drawn from the vocabulary by the seed."""

    def embed_tokens(self, ids: Tensor) -> Tensor:
        """Return the embeddings [T, E] of tokens [T], in float32."""

    def compute_keys_values(self, ids: Tensor) -> Tensor:
        """Return what the attention of every block keeps of tokens [T]: [blocks, 2, groups, T, D], in float32."""

    def keys_shape(self) -> tuple[int, int, int]:
        """Return (blocks, groups, D) of what `compute_keys_values` returns."""

    def named_weights(self) -> dict[str, nn.Parameter]:
        """Return every parameter, tied ones once. DataError: the model is quantised."""

    def find_scales(self, sites: dict[str, nn.Linear]) -> dict[str, Any]:
        """Return the scales of some quantised modules. DataError: they are not quantised."""

    def scale_blocks(self, sites: dict[str, nn.Linear]) -> dict[str, int]:
        """Return how many weights share a scale in each of some modules. DataError: they are not quantised."""

    def find_vectors(self, layers: Layers) -> dict[str, nn.Parameter]:
        """Return the norms and biases of some blocks, and the norms after the last block."""

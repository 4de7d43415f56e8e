"""The families of architectures that have a fast forward: one file for each, named as config.json's model_type."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol, cast

from ....core.parts import list_words, load_module
from ....errors import DataError
from ..libraries import import_bitsandbytes

if TYPE_CHECKING:
    from types import SimpleNamespace

    from torch import Tensor, nn
    from transformers import PreTrainedConfig, PreTrainedModel

    from ..past import PastKeyValues
    from ..points import PointProducts


class FamilyFacts(Protocol):
    """What a module of this folder says of its family of architectures.

    In shapes, S is the number of sequences, T that of their tokens, n that of the virtual tokens before them, H the width of
    hidden states, and E that of embeddings.
    """

    BLOCKS: str  # the name of the list of blocks inside the model
    HEAD: str  # what follows AutoModelFor in the name of transformers' class: CausalLM | MaskedLM
    UNUSED: tuple[str, ...]  # beginnings of the names of tensors that a checkpoint may hold and the model does not use
    WRITE: str  # the name, inside a block, of the Linear whose output is added to the hidden states last
    WRITES: tuple[str, ...]  # of all Linears there whose output is added to the hidden states, in order
    SHARED: tuple[
        str, ...
    ]  # of the norm and the Linears there that `last_of_points` computes for all points; (): it cannot

    def longest(self, config: PreTrainedConfig) -> int:
        """Return how many tokens a sequence may have."""

    def embed(self, model: PreTrainedModel, ids: Tensor, places: Tensor, ahead: Tensor | None = None) -> Tensor:
        """Return what the first block reads, [S, n + T, H].

        Args:
            ids: [S, T].
            places: positions, [1 or S, n + T].
            ahead: embeddings [S, n, E] of virtual tokens; None: n is 0.
        """

    def context(
        self, model: PreTrainedModel, h: Tensor, places: Tensor, past: PastKeyValues | None = None
    ) -> dict[str, Any]:
        """Return the arguments by name that every block takes besides the hidden states h, [S, n + T, H], and the mask."""

    def last(self, block: nn.Module, h: Tensor, rows: Tensor, **context: Any) -> Tensor:
        """Return the output of the last block at the rows [S, R] alone, [S, R, H]: queries are computed only there."""

    def last_of_points(
        self, block: nn.Module, h: Tensor, rows: Tensor, products: PointProducts, **context: Any
    ) -> Tensor:
        """Return the same of C points that share the block's input h [S, T, H], [C * S, R, H]. Attention must be causal."""

    def final(self, model: PreTrainedModel, h: Tensor) -> Tensor:
        """Return what the head reads, [..., H], from the output of the last block."""

    def read_norm(self, model: PreTrainedModel) -> nn.Module:
        """Return the norm whose input is the sum of the last block's `WRITE` and what it is added to, [S, R, H]."""

    def head_input(self, model: PreTrainedModel, h: Tensor) -> Tensor:
        """Return what the head reads, [..., H], of that sum [..., H]."""

    def head(self, model: PreTrainedModel) -> nn.Linear:
        """Return the matrix that makes logits over the vocabulary."""


def load_family(config: PreTrainedConfig | SimpleNamespace) -> FamilyFacts:
    """Return the module that describes a model's family.

    config: the model's configuration, or an object with the same attributes. DataError: zoedge does not know the family, or
    the model attends in both directions where its family does not.
    """
    family = config.model_type
    if family not in list_words("scoring.models.families"):
        known = ", ".join(list_words("scoring.models.families"))
        raise DataError(f"Model family '{family}' is not supported yet. zoedge knows: {known}.")
    if getattr(config, "use_bidirectional_attention", None):
        raise DataError(
            f"This {family} model attends in both directions (use_bidirectional_attention), and zoedge needs one that "
            "predicts the next token."
        )
    import_bitsandbytes()  # before transformers imports it
    return cast(FamilyFacts, load_module("scoring.models.families", family))


def check_head(task: str, head: str, facts: FamilyFacts) -> None:
    """Raise DataError where a task needs another kind of model than the family is.

    Args:
        task: the recipe's word for the task.
        head: what it scores with, CausalLM or MaskedLM.
    """
    if head != facts.HEAD:
        purpose = {"CausalLM": "reads what comes next", "MaskedLM": "fills a mask"}
        other = {"CausalLM": "name: mlm", "MaskedLM": "name: classify"}[head]
        raise DataError(
            f"task: {task} {purpose[head]}, and this base {purpose[facts.HEAD]}. Use task: {{{other}}}, "
            "or another model.source."
        )

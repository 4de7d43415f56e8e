"""Plain text. The loss is the cross-entropy of every token after the first, averaged over all tokens of the batch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from annotated_doc import Doc
from torch import Tensor

from ...core.types import AbstractTask
from ...errors import DataError
from ..rows.fields import require_fields
from ..rows.row import Row, RowError, raise_faults, read_field_text
from ..rows.turns import check_media
from ._encode import check_overflow, tokenise_texts, truncate_tokens
from ._examples import Batch, Examples
from ._training import AbstractTraining, mean_loss, token_losses

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from ..models.base import Base


@dataclass(frozen=True)
class Lm(AbstractTask):
    """The task of plain text, and its option."""

    formats: ClassVar[tuple[str, ...]] = ("text",)
    has_answers: ClassVar[bool] = False
    text: Annotated[str, Doc("The field with the text.")] = "text"

    def fields(self) -> list[str]:
        """Return the field of a row that holds its text."""
        return [self.text]

    def content(self, row: Row) -> str:
        """Return the text of a row. DataError: it is missing or empty."""
        check_media(row.fields, row.where)
        return read_field_text(row, self.text)

    def encode(
        self, rows: list[Row], tokenizer: PreTrainedTokenizerBase, limit: int, overflow: str
    ) -> tuple[Examples, dict[str, int]]:
        """Return the tokenised rows, and how many were truncated from the left or dropped.

        limit: the number of tokens in a forward at most.
        DataError: a row has no text or only one token, or `check_overflow` raises it.
        """
        require_fields(rows, [], self.text, option="task.text")
        texts: list[str] = []
        faults: dict[str, DataError] = {}
        for row in rows:
            try:
                texts.append(self.content(row))
            except DataError as e:
                faults[row.where] = e
        raise_faults(faults)
        examples, lengths = Examples(1), []
        for row, ids, start in zip(rows, *tokenise_texts(tokenizer, texts)):
            if len(ids) < 2:
                raise RowError([row.where], f"{row.where}: one token: nothing follows it that could be scored.")
            lengths.append(len(ids) - 1)
            if (cut := max(0, lengths[-1] - limit)) and overflow != "truncate":
                continue
            examples.add(*truncate_tokens(ids, list(range(1, len(ids))), start, cut), 0, row.where)
        return examples, check_overflow(rows, lengths, limit, overflow)

    def make_training(self, train: Examples, seed: int, size: int) -> LmTraining:
        """Return the task of a run over these examples, in batches of `size`."""
        return LmTraining(self, train, seed, size)


@dataclass
class LmTraining(AbstractTraining):
    """The task of a run whose loss is the cross-entropy of some tokens, and whose only metric is that loss."""

    def score(self, model: Base, batch: Batch, copies: int) -> Tensor:
        """Return losses [copies, B], in float64, whose mean is the cross-entropy of the batch's scored tokens."""
        return token_losses(model, batch, copies)

    def evaluate(self, model: Base, examples: Examples, calibrate: int) -> dict[str, Any]:
        """Return the loss, averaged over all tokens, and the number of examples."""
        return {"loss": mean_loss(model, examples), "count": len(examples)}

"""Plain text: loss = cross-entropy of every token after the first, the mean over all tokens in the batch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

from annotated_doc import Doc
from torch import Tensor

from ...core.types import AbstractTask
from ...errors import DataError
from ..rows.fields import require_fields
from ..rows.row import Row, raise_faults, read_field_text
from ._encode import check_overflow, tokenise_texts, truncate_tokens
from ._examples import Batch, Examples
from ._training import AbstractTraining, mean_loss, token_losses


@dataclass(frozen=True)
class Lm(AbstractTask):
    """The task of plain text, and its option."""

    formats: ClassVar[tuple[str, ...]] = ("text",)
    text: Annotated[str, Doc("The field with the text.")] = "text"

    def fields(self) -> list[str]:
        return [self.text]

    def encode(self, rows: list[Row], tokenizer: Any, limit: int, overflow: str) -> tuple[Examples, dict[str, int]]:
        """Tokenised rows, and counts of what was truncated (from the left) or dropped. DataError: fields, lengths."""
        require_fields(rows, [], self.text, option="task.text")
        texts, faults = [], []
        for row in rows:
            try:
                texts.append(read_field_text(row, self.text))
            except DataError as e:
                faults.append(e)
        raise_faults(faults)
        examples, lengths = Examples(1), []
        for row, ids, start in zip(rows, *tokenise_texts(tokenizer, texts)):
            if len(ids) < 2:
                raise DataError(f"{row.where}: one token: nothing follows it that could be scored.")
            lengths.append(len(ids) - 1)
            if (cut := max(0, lengths[-1] - limit)) and overflow != "truncate":
                continue
            examples.add(*truncate_tokens(ids, list(range(1, len(ids))), start, cut), 0, row.where)
        return examples, check_overflow(rows, lengths, limit, overflow)

    def over(self, train: Examples, seed: int, size: int) -> LmTraining:
        return LmTraining(self, train, seed, size)


@dataclass
class LmTraining(AbstractTraining):
    """A run whose loss is the cross-entropy of some tokens, and whose metric is that loss."""

    def score(self, model: Any, batch: Batch, copies: int) -> Tensor:
        """[copies, B], float64; their mean is the cross-entropy of a scored token of the batch."""
        return token_losses(model, batch, copies)

    def judge(self, model: Any, examples: Examples, calibrate: int) -> dict[str, Any]:
        return {"loss": mean_loss(model, examples), "count": len(examples)}

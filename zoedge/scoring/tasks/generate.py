"""Answer in free text: loss = cross-entropy of the answer's tokens; evaluated by greedy generation against gold answers.

MeZO's generation (arXiv 2305.17333, App. E): teacher forcing on the first answer and a line break, the mean over all such
tokens in the batch; at most 50 new tokens, up to a line break or the end; the F1 of SQuAD over several gold answers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

import torch
from annotated_doc import Doc
from annotated_types import Ge
from torch import Tensor

from ...core.types import AbstractTask
from ...errors import DataError, make_printable
from ..rows.fields import require_fields
from ..rows.row import Row, raise_faults, read_field_text
from . import _objective
from ._encode import check_overflow, tokenise_texts, truncate_tokens
from ._examples import Batch, Examples
from ._prompt import parse_template, render_template, template_fields
from ._training import AbstractTraining, evaluation_batches, mean_loss, token_losses


@dataclass(frozen=True)
class Generate(AbstractTask):
    """The task of free answers, and its options."""

    prompt: Annotated[str, Doc("A template over the row's fields.")] = "Question: {question}\nAnswer:"
    answer: Annotated[
        str, Doc("The field with the answer, or with a list of right ones (a.b is field b of field a).")
    ] = "answer"
    tokens: Annotated[int, Ge(1), Doc("The most new tokens of an answer. A prompt leaves room for them.")] = 50
    objective: Annotated[
        str,
        Doc(
            "What is trained: loss, f1, exact_match, or module:function, a reward of the rows and the generated texts."
        ),
    ] = "loss"

    def __post_init__(self) -> None:
        parse_template(self.prompt)
        _objective.check_objective(self.objective, ["f1", "exact_match"])

    def fields(self) -> list[str]:
        """The row's fields that the prompt is made of."""
        return template_fields(self.prompt)

    def encode(self, rows: list[Row], tokenizer: Any, limit: int, overflow: str) -> tuple[Examples, dict[str, int]]:
        """Tokenised rows, and counts of what was truncated or dropped. DataError: fields, answers, lengths."""
        require_fields(rows, self.fields(), self.answer.partition(".")[0], option="task.answer")
        prompts, answers, faults = [], [], []
        for row in rows:
            try:
                answers.append(self._answers(row))
                prompts.append(render_template(self.prompt, row))
            except DataError as e:
                faults.append(e)
        raise_faults(faults)
        heads, starts = tokenise_texts(tokenizer, [prompt.strip(" ") for prompt in prompts])
        fulls, _ = tokenise_texts(tokenizer, [f"{p} {a[0]}\n".strip(" ") for p, a in zip(prompts, answers)])
        examples, lengths = Examples(1), []
        for row, right, head, start, ids in zip(rows, answers, heads, starts, fulls):
            if len(ids) <= len(head):
                raise DataError(f"{row.where}: the answer '{make_printable(right[0])}' adds no token after the prompt.")
            lengths.append(max(len(ids) - 1, len(head) + self.tokens))
            if (cut := max(0, lengths[-1] - limit)) and overflow != "truncate":
                continue
            if len(head) - cut <= start:
                raise DataError(
                    f"{row.where}: {lengths[-1] - len(head)} tokens of answer leave no room for a prompt in {limit}. "
                    "Raise data.max_length, or lower task.tokens."
                )
            examples.add(*truncate_tokens(ids, list(range(len(head), len(ids))), start, cut), 0, row.where)
            more = {"row": row.fields} if _objective.is_function(self.objective) else {}
            examples.notes.append({"where": row.where, "answers": right, **more})
        return examples, check_overflow(rows, lengths, limit, overflow)

    def over(self, train: Examples, seed: int, size: int) -> GenerateTraining:
        return GenerateTraining(self, train, seed, size)

    def _answers(self, row: Row) -> list[str]:
        value: Any = row.fields
        for name in self.answer.split("."):
            value = value.get(name) if isinstance(value, dict) else None
        some = value if isinstance(value, list) and value else [value]
        return [read_field_text(Row(row.where, {self.answer: one}), self.answer) for one in some]


@dataclass
class GenerateTraining(AbstractTraining):
    """A run of Generate."""

    def score(self, model: Any, batch: Batch, copies: int) -> Tensor:
        """Cross-entropy of the answers' tokens, or 1 - reward of what is generated: [copies, B], float64."""
        if self.options.objective == "loss":
            return token_losses(model, batch, copies)
        texts = self.texts(model, batch, copies)
        found = [_objective.compute_rewards(self.options.objective, batch.notes, some) for some in texts]
        return 1 - torch.tensor(found, dtype=torch.float64)

    def texts(self, model: Any, batch: Batch, copies: int) -> list[list[str]]:
        """The first line of what the model answers to each prompt: [copies][B]."""
        prompts = [
            ids[: rows[0] + 1]
            for ids, rows in ((batch.examples.tokens[i], batch.examples.rows[i]) for i in batch.index)
        ]
        return model.answers(prompts, copies, self.options.tokens)

    def replies(self, model: Any, examples: Examples) -> list[tuple[str, str]]:
        texts = self.texts(model, examples.collate(range(len(examples))), 1)[0]
        return [(" | ".join(note["answers"]), text) for note, text in zip(examples.notes, texts)]

    def judge(self, model: Any, examples: Examples, calibrate: int) -> dict[str, Any]:
        """F1 and exact match of greedy answers, and the training loss."""
        outputs = [""] * len(examples)
        for chosen in evaluation_batches(examples, self.options.tokens):
            for i, text in zip(chosen, self.texts(model, examples.collate(chosen), 1)[0]):
                outputs[i] = text

        def mean(objective: str) -> float:
            return sum(_objective.compute_rewards(objective, examples.notes, outputs)) / len(outputs)

        found = {"loss": mean_loss(model, examples), "count": len(outputs)}
        found |= {"f1": mean("f1"), "exact_match": mean("exact_match")}
        if _objective.is_function(self.options.objective):
            found["reward"] = mean(self.options.objective)
        return found

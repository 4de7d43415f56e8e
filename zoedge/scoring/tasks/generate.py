"""Answers in free text. The loss is the cross-entropy of the answer's tokens; evaluation compares greedy answers.

This is MeZO's generation (arXiv 2305.17333, App. E). Training is teacher forcing on the first answer and a line break,
averaged over all such tokens in the batch. A generated answer has at most 50 tokens, and ends at a line break. It is
compared with all right answers by SQuAD's F1 and exact match.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import torch
from annotated_doc import Doc
from annotated_types import Ge
from torch import Tensor

from ...core.types import AbstractTask
from ...errors import DataError, make_printable
from ..rows.fields import require_fields
from ..rows.row import Row, RowError, raise_faults, read_field_text
from . import _objective
from ._encode import check_overflow, tokenise_texts, truncate_tokens
from ._examples import Batch, Examples
from ._prompt import parse_template, render_template, template_fields
from ._training import AbstractTraining, evaluation_batches, mean_loss, token_losses

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from ..models.base import Base


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
        """Return the fields of a row that its prompt is made of."""
        return template_fields(self.prompt)

    def content(self, row: Row) -> str:
        """Return the prompt of a row. DataError: a field is missing or empty."""
        return render_template(self.prompt, row).strip(" ")

    def encode(
        self, rows: list[Row], tokenizer: PreTrainedTokenizerBase, limit: int, overflow: str
    ) -> tuple[Examples, dict[str, int]]:
        """Return the tokenised rows, and how many were truncated or dropped.

        limit: the number of tokens in a forward at most.
        DataError: a field or an answer is missing or empty, nothing of a prompt would be left, or `check_overflow`
        raises it.
        """
        require_fields(rows, self.fields(), self.answer.partition(".")[0], option="task.answer")
        prompts: list[str] = []
        answers: list[list[str]] = []
        faults: dict[str, DataError] = {}
        for row in rows:
            try:
                answers.append(self._answers(row))
                prompts.append(render_template(self.prompt, row))
            except DataError as e:
                faults[row.where] = e
        raise_faults(faults)
        prompt_sequences, starts = tokenise_texts(tokenizer, [prompt.strip(" ") for prompt in prompts])
        full_sequences, _ = tokenise_texts(tokenizer, [f"{p} {a[0]}\n".strip(" ") for p, a in zip(prompts, answers)])
        examples, lengths = Examples(1), []
        for row, right, prompt_ids, start, ids in zip(rows, answers, prompt_sequences, starts, full_sequences):
            if len(ids) <= len(prompt_ids):
                raise RowError(
                    [row.where], f"{row.where}: the answer '{make_printable(right[0])}' adds no token after the prompt."
                )
            lengths.append(max(len(ids) - 1, len(prompt_ids) + self.tokens))
            cut = max(0, lengths[-1] - limit)
            if cut and overflow != "truncate":
                continue
            if len(prompt_ids) - cut <= start:
                raise RowError(
                    [row.where],
                    f"{row.where}: {lengths[-1] - len(prompt_ids)} tokens of answer leave no room for a prompt in {limit}. "
                    "Raise data.max_length, or lower task.tokens.",
                )
            examples.add(*truncate_tokens(ids, list(range(len(prompt_ids), len(ids))), start, cut), 0, row.where)
            note: dict[str, Any] = {"where": row.where, "answers": right}
            if _objective.is_function(self.objective):
                note["row"] = row.fields
            examples.notes.append(note)
        counts = check_overflow(rows, lengths, limit, overflow)
        # an answer is generated up to its first line break
        if several := sum(all("\n" in answer.strip() for answer in right) for right in answers):
            counts["have answers of several lines alone, of which the first line is generated: exact_match is 0"] = (
                several
            )
        return examples, counts

    def make_training(self, train: Examples, seed: int, size: int) -> GenerateTraining:
        """Return the task of a run over these examples, in batches of `size`."""
        return GenerateTraining(self, train, seed, size)

    def _answers(self, row: Row) -> list[str]:
        """Return the right answers of a row. DataError: one of them is missing or empty."""
        value: Any = row.fields
        for name in self.answer.split("."):
            value = value.get(name) if isinstance(value, dict) else None
        answers = value if isinstance(value, list) and value else [value]
        return [read_field_text(Row(row.where, {self.answer: answer}), self.answer) for answer in answers]


@dataclass
class GenerateTraining(AbstractTraining):
    """The task of a run that trains on answers in free text."""

    def score(self, model: Base, batch: Batch, copies: int) -> Tensor:
        """Return losses [copies, B], in float64.

        With objective `loss` they are the cross-entropy of the answers' tokens, else 1 - the reward of a greedy answer.
        """
        if self.options.objective == "loss":
            return token_losses(model, batch, copies)
        answers = self.texts(model, batch, copies)
        rewards = [_objective.compute_rewards(self.options.objective, batch.notes, texts) for texts in answers]
        return 1 - torch.tensor(rewards, dtype=torch.float64)

    def texts(self, model: Base, batch: Batch, copies: int) -> list[list[str]]:
        """Return the first line of the model's greedy answer to each prompt, [copies][B]."""
        examples = batch.examples
        prompts = []
        for i in batch.index:
            last_of_prompt = examples.rows[i][0]  # it predicts the answer's first token
            prompts.append(examples.tokens[i][: last_of_prompt + 1])
        return model.generate_answers(prompts, copies, self.options.tokens)

    def sample_answers(self, model: Base, examples: Examples) -> list[tuple[str, str]]:
        """Return the right answers, joined by " | ", and the model's answer to each example."""
        texts = self.texts(model, examples.collate(range(len(examples))), 1)[0]
        return [(" | ".join(note["answers"]), text) for note, text in zip(examples.notes, texts)]

    def evaluate(self, model: Base, examples: Examples, calibrate: int) -> dict[str, Any]:
        """Return the training loss, and F1 and exact match of greedy answers.

        `reward` is there too where the objective is a function.
        """
        outputs = [""] * len(examples)
        for chosen in evaluation_batches(examples, self.options.tokens):
            for i, text in zip(chosen, self.texts(model, examples.collate(chosen), 1)[0]):
                outputs[i] = text

        def mean(objective: str) -> float:
            return sum(_objective.compute_rewards(objective, examples.notes, outputs)) / len(outputs)

        metrics = {"loss": mean_loss(model, examples), "count": len(outputs)}
        metrics |= {"f1": mean("f1"), "exact_match": mean("exact_match")}
        if _objective.is_function(self.options.objective):
            metrics["reward"] = mean(self.options.objective)
        return metrics

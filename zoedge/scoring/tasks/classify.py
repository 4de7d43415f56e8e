"""Classification by words that may follow a prompt. The loss is CE(softmax(mean log p of each option's tokens), label).

This is MeZO's classification (arXiv 2305.17333, App. E; train_as_classification). Where every option is one token, an
example is one sequence, and only the options' columns of the head are computed; the softmax over them is the same.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any

import torch
from annotated_doc import Doc
from torch import Tensor

from ...core.types import AbstractTask
from ...errors import DataError, make_printable, suggest_nearest
from ..rows.fields import require_fields
from ..rows.row import Row, RowError, file_of_rows, raise_faults, read_field_text, value_as_text
from . import _objective
from ._encode import check_overflow, find_equal_options, tokenise_texts
from ._examples import Batch, Examples
from ._prompt import parse_template, render_template, template_fields
from ._training import AbstractTraining, evaluation_batches, sum_log_likelihoods

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from ..models.base import Base


@dataclass(frozen=True)
class Classify(AbstractTask):
    """The task of classification by the words that follow a prompt, and its options."""

    prompt: Annotated[str, Doc("A template over the row's fields.")] = "{text} It was"
    options: Annotated[dict[str, str], Doc("For every label, the words that follow the prompt.")] = field(
        default_factory=lambda: {"negative": " terrible", "positive": " great"}
    )
    label: Annotated[str, Doc("The field with the label.")] = "label"
    objective: Annotated[
        str,
        Doc(
            "What is trained: loss, accuracy, or module:function, a reward of the rows and the labels that were chosen."
        ),
    ] = "loss"

    def __post_init__(self) -> None:
        if len(self.options) < 2 or len(set(self.options.values())) < len(self.options):
            raise ValueError("options: at least two, all different")
        parse_template(self.prompt)
        _objective.check_objective(self.objective, ["accuracy"])

    @property
    def labels(self) -> list[str]:
        """The labels that an example may have, in order."""
        return list(self.options)

    def fields(self) -> list[str]:
        """Return the fields of a row that its prompt is made of."""
        return template_fields(self.prompt)

    def content(self, row: Row) -> str:
        """Return the prompt of a row. DataError: a field is missing or empty."""
        return self.render(row)

    def render(self, row: Row) -> str:
        """Return the prompt of a row. DataError: a field is missing or empty."""
        return render_template(self.prompt, row).strip(" ")

    def encode(
        self, rows: list[Row], tokenizer: PreTrainedTokenizerBase, limit: int, overflow: str
    ) -> tuple[Examples, dict[str, int]]:
        """Return the tokenised rows, and how many were truncated or dropped.

        limit: the number of tokens in a forward at most.
        DataError: a row's label is no option, an option adds no token, nothing of a prompt would be left, or
        `check_overflow` raises it.
        """
        require_fields(rows, self.fields(), self.label)
        words = list(self.options.values())
        prompts, labels = self.render_rows(rows)
        prompt_sequences, starts = tokenise_texts(tokenizer, prompts)
        full_by_option = [tokenise_texts(tokenizer, [p + w for p in prompts])[0] for w in words]
        for full in zip(*full_by_option):
            if fault := find_equal_options(tokenizer, words, list(full)):
                raise DataError(f"task.options: {fault}. Choose words that it tells apart.")
        single = options_are_tokens(prompt_sequences, full_by_option)
        examples = Examples(1 if single else len(words))
        lengths: list[int] = []
        for row, label, prompt_ids, start, *full in zip(rows, labels, prompt_sequences, starts, *full_by_option):
            if single:
                sequences = [(prompt_ids, 1, [ids[-1] for ids in full])]
            else:  # as in MeZO, an option has as many tokens as it adds to the prompt; its last one is scored, but never read
                sizes = [len(ids) - len(prompt_ids) for ids in full]
                if min(sizes) < 1:
                    word = make_printable(words[sizes.index(min(sizes))])
                    raise RowError(
                        [row.where], f"task.options: '{word}' adds no token after the prompt of {row.where}."
                    )
                sequences = [(ids[:-1], n, ids[-n:]) for ids, n in zip(full, sizes)]
            lengths.append(max(len(ids) for ids, _, _ in sequences))
            cut = lengths[-1] - limit
            if cut > 0:
                if overflow != "truncate":
                    continue
                if len(prompt_ids) - cut <= start:
                    raise RowError(
                        [row.where], f"{row.where}: the options alone fill {limit} tokens. Raise data.max_length."
                    )
                # the prompt loses its beginning, as many tokens for every option; special tokens before it stay
                sequences = [(ids[:start] + ids[start + cut :], n, targets) for ids, n, targets in sequences]
            for ids, n, targets in sequences:
                examples.tokens.append(ids)
                examples.rows.append(list(range(len(ids) - n, len(ids))))
                examples.targets.append(targets)
            examples.labels.append(label)
            examples.names.append(row.where)
            if _objective.is_function(self.objective):
                examples.notes.append({"where": row.where, "row": row.fields})
        return examples, check_overflow(rows, lengths, limit, overflow)

    def render_rows(self, rows: list[Row]) -> tuple[list[str], list[int]]:
        """Return the prompt of each row and the number of its label. DataError names every row that is not valid."""
        names = list(self.options)
        label_counts = Counter(value_as_text(row.fields.get(self.label)) for row in rows)
        if not label_counts.keys() & self.options.keys():
            raise DataError(
                f"{file_of_rows(rows)}: no row's label is one of task.options "
                f"({', '.join(map(make_printable, names))}). There is: "
                f"{', '.join(f'{make_printable(word)} ({n:,} rows)' for word, n in label_counts.most_common(8))}. Name "
                "them in task.options: "
                f"{{{', '.join(f'{make_printable(word)}: ...' for word in sorted(label_counts)[:2])}}}."
            )
        faults: dict[str, DataError] = {}
        prompts, labels = [], []
        for row in rows:
            try:
                label = read_field_text(row, self.label)
                if label not in self.options:
                    known = ", ".join(map(make_printable, names)) + f"){suggest_nearest(label, names) or '.'}"
                    raise DataError(f'{row.where}: label "{make_printable(label)}" is not one of task.options ({known}')
                prompts.append(self.render(row))
                labels.append(names.index(label))
            except DataError as e:
                faults[row.where] = e
        raise_faults(faults)
        return prompts, labels

    def make_training(self, train: Examples, seed: int, size: int) -> ClassifyTraining:
        """Return the task of a run over these examples, in batches of `size`."""
        return ClassifyTraining(self, train, seed, size)


def options_are_tokens(prompts: list[list[int]], fulls: list[list[list[int]]]) -> bool:
    """Return whether every option is one token, the same after every prompt.

    Args:
        prompts: the token ids of each prompt.
        fulls: by option, those of each prompt with the option.
    """
    for full in fulls:
        if any(ids[:-1] != prompt for ids, prompt in zip(full, prompts)):
            return False
    return all(len({ids[-1] for ids in full}) == 1 for full in fulls)


@dataclass
class ClassifyTraining(AbstractTraining):
    """The task of a run that trains on labels: those of Classify, or the words for a mask of Mlm."""

    @property
    def option_count(self) -> int:
        """The number of labels."""
        return len(self.options.options)

    def right_options(self, batch: Batch) -> list[int]:
        """Return the number of each example's label."""
        numbers: list[int] = batch.labels.tolist()
        return numbers

    def outputs(self, model: Base, batch: Batch, copies: int) -> Tensor:
        """Return the options' log-probabilities, [copies, B, options], in float64 on the CPU.

        They may be off by a constant for each example, which a softmax over the options removes.
        """
        if batch.examples.sequences_each == 1:
            scores: Tensor = model.logits(model.hidden_states(batch, copies)[:, 0], batch.targets[0]).double().cpu()
        else:
            sums, counts = sum_log_likelihoods(model, batch, copies)
            scores = sums / counts
        return scores.view(copies, len(batch), -1)

    def score(self, model: Base, batch: Batch, copies: int) -> Tensor:
        """Return losses [copies, B], in float64.

        With objective `loss` they are the cross-entropy over the options, else 1 - the reward of the likeliest option.
        """
        outputs = self.outputs(model, batch, copies)
        if self.options.objective == "loss":
            log_p = torch.log_softmax(outputs, dim=-1)
            right: Tensor = log_p.gather(-1, batch.labels.expand(copies, -1)[..., None])[..., 0]
            return -right
        return 1 - self.rewards(batch, outputs)

    def rewards(self, batch: Batch, outputs: Tensor) -> Tensor:
        """Return the reward of each example's likeliest option, [copies, B], in float64. outputs: as `outputs` returns."""
        chosen = outputs.argmax(-1)
        if self.options.objective == "accuracy":
            return (chosen == batch.labels).double()
        labels, notes = list(self.options.options), batch.notes
        rewards = [
            _objective.compute_rewards(self.options.objective, notes, [labels[i] for i in row])
            for row in chosen.tolist()
        ]
        return torch.tensor(rewards, dtype=torch.float64)

    def evaluate(self, model: Base, examples: Examples, calibrate: int) -> dict[str, Any]:
        """Return the loss and three accuracies by name, and the reward where the objective is a function.

        `accuracy` is the share of rows whose likeliest option is right. `calibrated` is the same after the model's bias for
        some labels is taken off, which is the options' mean log p on `calibrate` training rows. `majority` is what always
        choosing the most frequent label gives.
        """
        scores, labels = self.option_log_probs(model, examples), torch.tensor(examples.labels)
        bias = self.option_log_probs(model, self.train.head(calibrate)).mean(0)

        def accuracy(scores: Tensor) -> float:
            return (scores.argmax(-1) == labels).double().mean().item()

        metrics = {
            "loss": -scores.gather(-1, labels[:, None]).mean().item(),
            "count": len(labels),
            "accuracy": accuracy(scores),
            "calibrated": accuracy(scores - bias),
            "majority": max(Counter(examples.labels).values()) / len(labels),
        }
        if _objective.is_function(self.options.objective):
            whole = examples.collate(range(len(examples)))
            metrics["reward"] = self.rewards(whole, scores[None]).mean().item()
        return metrics

    def sample_answers(self, model: Base, examples: Examples) -> list[tuple[str, str]]:
        """Return the right label and the likeliest one of each example."""
        names = list(self.options.options)
        picks = self.option_log_probs(model, examples).argmax(-1).tolist()
        return [(names[right], names[pick]) for right, pick in zip(examples.labels, picks)]

    def option_log_probs(self, model: Base, examples: Examples) -> Tensor:
        """Return log softmax over the options of each of N examples, [N, options], in float64."""
        numbered: list[tuple[int, Tensor]] = []
        for chosen in evaluation_batches(examples):
            scores = self.outputs(model, examples.collate(chosen), 1)[0]
            numbered += zip(chosen, torch.log_softmax(scores, dim=-1))
        return torch.stack([row for _, row in sorted(numbered, key=lambda pair: pair[0])])

"""Multiple choice among candidates that each row brings. The loss is the cross-entropy of the right candidate's tokens.

This is MeZO's multiple choice (arXiv 2305.17333, App. E). Training is teacher forcing on the right candidate alone,
averaged over all its tokens in the batch. The model's answer is the candidate whose tokens have the highest mean log p.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any

import torch
from annotated_doc import Doc
from torch import Tensor

from ...core.types import AbstractTask
from ...errors import DataError, make_printable
from ..rows.fields import require_fields
from ..rows.row import Row, RowError, raise_faults
from . import _objective
from ._branches import count_token_rows
from ._candidates import Candidates, read_candidates, read_right
from ._encode import check_overflow, find_equal_options, tokenise_texts, truncate_tokens
from ._examples import Batch, Examples
from ._prompt import parse_template, render_template, template_fields
from ._training import AbstractTraining, mean_loss, pack_batches, sum_log_likelihoods, token_losses

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from ..models.base import Base

CHOICE_FIELD = "choice"  # the candidate, as a field that `option` may name


@dataclass(frozen=True)
class Choose(AbstractTask):
    """The task of choosing among candidates, and its options."""

    prompt: Annotated[str, Doc("A template over the row's fields.")] = "{premise:unended} {question:connective}"
    option: Annotated[
        str,
        Doc(
            "A template over the row's fields and {choice}, the candidate. The text `blank` in it is the candidate too."
        ),
    ] = " {choice:uncapital}"
    choices: Annotated[
        list[str], Doc("The fields that hold a candidate each, or the one field that holds a list or a table of them.")
    ] = field(default_factory=lambda: ["choice1", "choice2"])
    label: Annotated[
        str,
        Doc(
            "The field with the right candidate: its number from 0, its letter, its name, its text, or a list of right "
            "texts (the first is trained on)."
        ),
    ] = "label"
    blank: Annotated[str, Doc("The text that the candidate replaces.")] = ""
    objective: Annotated[str, Doc("What is trained: loss, accuracy, or module:function.")] = "loss"

    def __post_init__(self) -> None:
        parse_template(self.prompt)
        parse_template(self.option, "option")
        if not self.choices:
            raise ValueError("choices: name the fields with the candidates")
        if not self.blank and CHOICE_FIELD not in template_fields(self.option):
            raise ValueError("option: the candidate is nowhere in it: write {choice}, or set blank")
        _objective.check_objective(self.objective, ["accuracy"])

    def fields(self) -> list[str]:
        """Return the fields of a row that prompts and options are made of."""
        return list(dict.fromkeys([*template_fields(self.prompt), *self.choices, *self._others()]))

    def content(self, row: Row) -> str:
        """Return the prompt of a row and its different options, in the order of the alphabet. DataError: one is missing."""
        prompt, options = self._render(row, read_candidates(row, self.choices).different)
        return "\n".join([prompt.strip(" "), *sorted(set(options))])

    def encode(
        self, rows: list[Row], tokenizer: PreTrainedTokenizerBase, limit: int, overflow: str
    ) -> tuple[Examples, dict[str, int]]:
        """Return the tokenised rows, and how many were truncated or dropped.

        limit: the number of tokens in a forward at most.
        DataError: a row's candidates or label are not valid, nothing of a prompt would be left, or `check_overflow`
        raises it.
        """
        require_fields(rows, [*template_fields(self.prompt), *self._others()], self.label, self.choices)
        items: list[tuple[str, list[str]]] = []
        candidate_sets: list[Candidates] = []
        faults: dict[str, DataError] = {}
        for row in rows:
            try:
                candidate_sets.append(read_candidates(row, self.choices))
                items.append(self._render(row, candidate_sets[-1].different))
            except DataError as e:
                faults[row.where] = e
        raise_faults(faults)
        right_numbers = read_right(rows, candidate_sets, self.label)
        prompt_sequences, starts = tokenise_texts(tokenizer, [prompt.strip(" ") for prompt, _ in items])
        full_sequences = iter(
            tokenise_texts(tokenizer, [(p + o).strip(" ") for p, options in items for o in options])[0]
        )
        examples, lengths = Examples(1), []
        for row, prompt_ids, start, right, written in zip(
            rows, prompt_sequences, starts, right_numbers, candidate_sets
        ):
            candidates = written.different
            sequences = [next(full_sequences) for _ in candidates]
            if fault := find_equal_options(tokenizer, candidates, sequences):
                raise RowError([row.where], f"{row.where}: {fault}, so that no model can choose between them.")
            for ids, candidate in zip(sequences, candidates):
                if len(ids) <= len(prompt_ids):
                    raise RowError(
                        [row.where], f"{row.where}: '{make_printable(candidate)}' adds no token after the prompt."
                    )
            lengths.append(max(map(len, sequences)) - 1)
            cut = max(0, lengths[-1] - limit)
            if cut and overflow != "truncate":
                continue
            if len(prompt_ids) - cut <= start:
                raise RowError(
                    [row.where], f"{row.where}: the options alone fill {limit} tokens. Raise data.max_length."
                )
            truncated = [truncate_tokens(ids, list(range(len(prompt_ids), len(ids))), start, cut) for ids in sequences]
            every = Examples(1)
            for i, (ids, scored) in enumerate(truncated):
                every.add(ids, scored, int(i in right), row.where)
            trained_on = right[0]
            examples.add(*truncated[trained_on], trained_on, row.where)
            examples.choices.append(every)
            if _objective.is_function(self.objective):
                examples.notes.append({"where": row.where, "row": row.fields, "choices": candidates})
        return examples, check_overflow(rows, lengths, limit, overflow)

    def make_training(self, train: Examples, seed: int, size: int) -> ChooseTraining:
        """Return the task of a run over these examples, in batches of `size`."""
        return ChooseTraining(self, train, seed, size)

    def _others(self) -> list[str]:
        """Return the fields that the option's template names, besides the candidate."""
        return [name for name in template_fields(self.option) if name != CHOICE_FIELD]

    def _render(self, row: Row, candidates: list[str]) -> tuple[str, list[str]]:
        """Return a row's prompt, and the option of each of its candidates. DataError: a field is missing or empty."""
        options = []
        for candidate in candidates:
            text = render_template(self.option, Row(row.where, row.fields | {CHOICE_FIELD: candidate}))
            options.append(text.replace(self.blank, candidate) if self.blank else text)
        return render_template(self.prompt, row), options


@dataclass
class ChooseTraining(AbstractTraining):
    """The task of a run that trains on multiple choice."""

    def batch(self, step: int) -> Batch:
        """Return the batch of a step, with all candidates where the objective compares them."""
        batch = super().batch(step)
        if self.options.objective != "loss":
            batch.flat = flatten_choices(self.train, batch.index)
        return batch

    def score(self, model: Base, batch: Batch, copies: int) -> Tensor:
        """Return losses [copies, B], in float64.

        With objective `loss` they are the cross-entropy of the right candidates' tokens, else 1 - the reward of the
        likeliest candidate.
        """
        if self.options.objective == "loss":
            return token_losses(model, batch, copies)
        every = batch.flat or flatten_choices(batch.examples, batch.index)
        sums, counts = sum_log_likelihoods(model, every, copies)
        sets = [batch.examples.choices[i] for i in batch.index]
        notes = batch.notes if _objective.is_function(self.options.objective) else []
        rewards = [self.rewards(notes, sets, pick_likeliest(means, sets)) for means in (sums / counts)]
        return 1 - torch.tensor(rewards, dtype=torch.float64)

    def rewards(self, notes: list[dict[str, Any]], sets: list[Examples], picks: list[int]) -> list[float]:
        """Return the reward of each example, of whose candidates `sets` the one with the number in `picks` was chosen."""
        if self.options.objective == "accuracy":
            return [float(candidates.labels[pick]) for candidates, pick in zip(sets, picks)]
        outputs = [note["choices"][pick] for note, pick in zip(notes, picks)]
        return _objective.compute_rewards(self.options.objective, notes, outputs)

    def sample_answers(self, model: Base, examples: Examples) -> list[tuple[str, str]]:
        """Return the text of the right candidate and of the likeliest one of each example."""
        sets = examples.choices
        sums, counts = sum_log_likelihoods(model, flatten_choices(examples, list(range(len(sets)))), 1)
        picks = pick_likeliest((sums / counts)[0], sets)
        picked_tokens = [candidates.targets[pick] for candidates, pick in zip(sets, picks)]
        right, answers = (model.tokenizer.batch_decode(ids) for ids in (examples.targets, picked_tokens))
        return [(a.strip(), b.strip()) for a, b in zip(right, answers)]

    def evaluate(self, model: Base, examples: Examples, calibrate: int) -> dict[str, Any]:
        """Return the training loss, the accuracy, and `majority`, the accuracy of always choosing the same place in the list.

        `reward` is there too where the objective is a function.
        """
        sets = examples.choices
        picks = [0] * len(sets)
        for chosen in pack_batches([count_token_rows(candidates.tokens) for candidates in sets]):
            sums, counts = sum_log_likelihoods(model, flatten_choices(examples, chosen), 1)
            for i, pick in zip(chosen, pick_likeliest((sums / counts)[0], [sets[i] for i in chosen])):
                picks[i] = pick
        places = range(max(map(len, sets)))
        right_at = [sum(candidates.labels[k] for candidates in sets if k < len(candidates)) for k in places]
        metrics = {
            "loss": mean_loss(model, examples),
            "count": len(sets),
            "accuracy": sum(candidates.labels[pick] for candidates, pick in zip(sets, picks)) / len(sets),
            "majority": max(right_at) / len(sets),
        }
        if _objective.is_function(self.options.objective):
            metrics["reward"] = sum(self.rewards(examples.notes, sets, picks)) / len(sets)
        return metrics


def pick_likeliest(means: Tensor, sets: list[Examples]) -> list[int]:
    """Return the number of the likeliest candidate in each set.

    means: the mean log-probability of each candidate's tokens, [candidates of all sets].
    """
    return [int(part.argmax()) for part in means.split([len(candidates) for candidates in sets])]


def flatten_choices(examples: Examples, chosen: list[int]) -> Batch:
    """Return the batch of all candidates of some examples, one example after another."""
    whole, sets = Examples(1), [examples.choices[i] for i in chosen]
    for candidates in sets:
        whole.tokens += candidates.tokens
        whole.rows += candidates.rows
        whole.targets += candidates.targets
        whole.labels += candidates.labels
        whole.names += candidates.names
    return whole.collate(range(len(whole)), [len(candidates) for candidates in sets])

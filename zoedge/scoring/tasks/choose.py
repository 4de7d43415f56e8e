"""Choose among candidates of the row: loss = cross-entropy of the right candidate's tokens; the likeliest is the answer.

MeZO's multiple choice (arXiv 2305.17333, App. E): trained by teacher forcing on the right option alone, the mean over all
its tokens in the batch; evaluated by the mean log p of each candidate's tokens.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any

import torch
from annotated_doc import Doc
from torch import Tensor

from ...core.types import AbstractTask
from ...errors import DataError, make_printable
from ..rows.fields import require_fields
from ..rows.row import Row, raise_faults, read_field_text
from . import _objective
from ._branches import count_token_rows
from ._encode import check_overflow, tokenise_texts, truncate_tokens
from ._examples import Batch, Examples
from ._prompt import parse_template, render_template, template_fields
from ._training import AbstractTraining, mean_loss, pack_batches, sum_log_likelihoods, token_losses

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
        list[str], Doc("The fields that hold a candidate each, or the one field that holds a list of them.")
    ] = field(default_factory=lambda: ["choice1", "choice2"])
    label: Annotated[
        str,
        Doc(
            "The field with the right candidate: its number from 0, its text, or a list of right texts (the first "
            "is trained on)."
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
        """The row's fields that prompts and options are made of."""
        return list(dict.fromkeys([*template_fields(self.prompt), *self.choices, *self._others()]))

    def encode(self, rows: list[Row], tokenizer: Any, limit: int, overflow: str) -> tuple[Examples, dict[str, int]]:
        """Tokenised rows, and counts of what was truncated or dropped. DataError: candidates, labels, lengths."""
        require_fields(rows, [*template_fields(self.prompt), *self._others()], self.label, self.choices)
        items, faults = [], []
        for row in rows:
            try:
                items.append(self._texts(row))
            except DataError as e:
                faults.append(e)
        raise_faults(faults)
        heads, starts = tokenise_texts(tokenizer, [prompt.strip(" ") for prompt, *_ in items])
        fulls = iter(tokenise_texts(tokenizer, [(p + o).strip(" ") for p, options, *_ in items for o in options])[0])
        examples, lengths = Examples(1), []
        for row, head, start, (_, options, candidates, right) in zip(rows, heads, starts, items):
            whole = [next(fulls) for _ in options]
            for ids, candidate in zip(whole, candidates):
                if len(ids) <= len(head):
                    raise DataError(f"{row.where}: '{make_printable(candidate)}' adds no token after the prompt.")
            lengths.append(max(map(len, whole)) - 1)
            if (cut := max(0, lengths[-1] - limit)) and overflow != "truncate":
                continue
            if len(head) - cut <= start:
                raise DataError(f"{row.where}: the options alone fill {limit} tokens. Raise data.max_length.")
            some = Examples(1)
            for i, ids in enumerate(whole):
                some.add(
                    *truncate_tokens(ids, list(range(len(head), len(ids))), start, cut), int(i in right), row.where
                )
            ids = whole[right[0]]
            examples.add(*truncate_tokens(ids, list(range(len(head), len(ids))), start, cut), right[0], row.where)
            examples.choices.append(some)
            if _objective.is_function(self.objective):
                examples.notes.append({"where": row.where, "row": row.fields, "choices": candidates})
        return examples, check_overflow(rows, lengths, limit, overflow)

    def over(self, train: Examples, seed: int, size: int) -> ChooseTraining:
        return ChooseTraining(self, train, seed, size)

    def _others(self) -> list[str]:
        return [name for name in template_fields(self.option) if name != CHOICE_FIELD]

    def _texts(self, row: Row) -> tuple[str, list[str], list[str], list[int]]:
        """(prompt, options, candidates, numbers of the right ones) of a row."""
        candidates = self._candidates(row)
        options = []
        for candidate in candidates:
            text = render_template(self.option, Row(row.where, row.fields | {CHOICE_FIELD: candidate}))
            options.append(text.replace(self.blank, candidate) if self.blank else text)
        return render_template(self.prompt, row), options, candidates, self._right(row, candidates)

    def _candidates(self, row: Row) -> list[str]:
        found: list[str] = []
        for name in self.choices:
            if isinstance(value := row.fields.get(name), list):
                found += [read_field_text(Row(row.where, {name: text}), name) for text in value]
            else:
                found.append(read_field_text(row, name))
        if len(set(found)) < 2:
            raise DataError(
                f"{row.where}: {len(set(found))} candidate in {', '.join(map(make_printable, self.choices))}: no choice."
            )
        return list(dict.fromkeys(found))

    def _right(self, row: Row, candidates: list[str]) -> list[int]:
        value = row.fields.get(self.label)
        wanted = value if isinstance(value, list) and value else [read_field_text(row, self.label)]
        number = str(wanted[0])
        if len(wanted) == 1 and number not in candidates and number.isdecimal() and int(number) < len(candidates):
            return [int(number)]
        for text in wanted:
            if text not in candidates:
                there = ", ".join(make_printable(c, 40) for c in candidates[:8])
                raise DataError(
                    f'{row.where}: "{make_printable(str(text))}" ({make_printable(self.label)}) is not a candidate: {there}.'
                )
        return [candidates.index(text) for text in wanted]


@dataclass
class ChooseTraining(AbstractTraining):
    """A run of Choose."""

    def batch(self, step: int) -> Batch:
        batch = super().batch(step)
        if self.options.objective != "loss":
            batch.flat = flatten_choices(self.train, batch.index)
        return batch

    def score(self, model: Any, batch: Batch, copies: int) -> Tensor:
        """Cross-entropy of the right candidates' tokens, or 1 - reward of the likeliest: [copies, B], float64."""
        if self.options.objective == "loss":
            return token_losses(model, batch, copies)
        every = batch.flat or flatten_choices(batch.examples, batch.index)
        sums, counts = sum_log_likelihoods(model, every, copies)
        sets = [batch.examples.choices[i] for i in batch.index]
        notes = batch.notes if _objective.is_function(self.options.objective) else []
        found = [self.rewards(notes, sets, pick_likeliest(row, sets)) for row in (sums / counts)]
        return 1 - torch.tensor(found, dtype=torch.float64)

    def rewards(self, notes: list[dict[str, Any]], sets: list[Examples], picks: list[int]) -> list[float]:
        """Of the candidates picked."""
        if self.options.objective == "accuracy":
            return [float(some.labels[pick]) for some, pick in zip(sets, picks)]
        outputs = [note["choices"][pick] for note, pick in zip(notes, picks)]
        return _objective.compute_rewards(self.options.objective, notes, outputs)

    def replies(self, model: Any, examples: Examples) -> list[tuple[str, str]]:
        sets = examples.choices
        sums, counts = sum_log_likelihoods(model, flatten_choices(examples, list(range(len(sets)))), 1)
        chosen = pick_likeliest((sums / counts)[0], sets)
        picks = [some.targets[pick] for some, pick in zip(sets, chosen)]
        right, answers = (model.tokenizer.batch_decode(ids) for ids in (examples.targets, picks))
        return [(a.strip(), b.strip()) for a, b in zip(right, answers)]

    def judge(self, model: Any, examples: Examples, calibrate: int) -> dict[str, Any]:
        """Accuracy of the likeliest candidate, and of the best one place in the list; the training loss."""
        sets = examples.choices
        picks = [0] * len(sets)
        for chosen in pack_batches([count_token_rows(some.tokens) for some in sets]):
            sums, counts = sum_log_likelihoods(model, flatten_choices(examples, chosen), 1)
            for i, pick in zip(chosen, pick_likeliest((sums / counts)[0], [sets[i] for i in chosen])):
                picks[i] = pick
        places = range(max(map(len, sets)))
        found = {
            "loss": mean_loss(model, examples),
            "count": len(sets),
            "accuracy": sum(some.labels[pick] for some, pick in zip(sets, picks)) / len(sets),
            "majority": max(sum(some.labels[k] for some in sets if k < len(some)) for k in places) / len(sets),
        }
        if _objective.is_function(self.options.objective):
            found["reward"] = sum(self.rewards(examples.notes, sets, picks)) / len(sets)
        return found


def pick_likeliest(means: Tensor, sets: list[Examples]) -> list[int]:
    """The likeliest candidate of each set, by means [candidates of all sets]."""
    return [int(part.argmax()) for part in means.split([len(some) for some in sets])]


def flatten_choices(examples: Examples, chosen: list[int]) -> Batch:
    """Every candidate of some examples, one after another."""
    whole, sets = Examples(1), [examples.choices[i] for i in chosen]
    for some in sets:
        for ours, theirs in zip(
            (whole.tokens, whole.rows, whole.targets, whole.labels, whole.names),
            (some.tokens, some.rows, some.targets, some.labels, some.names),
        ):
            ours += theirs
    return whole.collate(range(len(whole)), [len(some) for some in sets])

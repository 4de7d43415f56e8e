"""Choose among fixed options after a prompt: loss = CE(softmax(mean log p of each option's tokens), label).

MeZO's classification (arXiv 2305.17333, App. E; train_as_classification). Where every option is one token, an example
is one sequence and only the option columns of the head are computed; the softmax over them is the same.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Annotated, Any

import torch
from annotated_doc import Doc
from torch import Tensor

from ...core.types import AbstractTask
from ...errors import DataError, make_printable, suggest_nearest
from ..rows.fields import require_fields
from ..rows.row import Row, file_of_rows, raise_faults, read_field_text, value_as_text
from . import _objective
from ._encode import check_overflow, tokenise_texts
from ._examples import Batch, Examples
from ._prompt import parse_template, render_template, template_fields
from ._training import AbstractTraining, evaluation_batches, sum_log_likelihoods


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
        return list(self.options)

    def fields(self) -> list[str]:
        """The row's fields that the prompt is made of."""
        return template_fields(self.prompt)

    def render(self, row: Row) -> str:
        return render_template(self.prompt, row).strip(" ")

    def encode(self, rows: list[Row], tokenizer: Any, limit: int, overflow: str) -> tuple[Examples, dict[str, int]]:
        """Tokenised rows, and counts of what was truncated or dropped. DataError: labels, lengths, empty options."""
        require_fields(rows, self.fields(), self.label)
        words = list(self.options.values())
        prompts, labels = self.rendered(rows)
        heads, starts = tokenise_texts(tokenizer, prompts)
        fulls = [tokenise_texts(tokenizer, [p + w for p in prompts])[0] for w in words]
        single = all(full[i][:-1] == head for full in fulls for i, head in enumerate(heads))
        single = single and all(len({ids[-1] for ids in full}) == 1 for full in fulls)
        examples = Examples(1 if single else len(words))
        lengths: list[int] = []
        for row, label, head, start, *full in zip(rows, labels, heads, starts, *fulls):
            if single:
                sequences = [(head, 1, [ids[-1] for ids in full])]
            else:  # the option is what the verbalised text adds in length (MeZO); its last token needs no forward
                sizes = [len(ids) - len(head) for ids in full]
                if min(sizes) < 1:
                    word = make_printable(words[sizes.index(min(sizes))])
                    raise DataError(f"task.options: '{word}' adds no token after the prompt of {row.where}.")
                sequences = [(ids[:-1], n, ids[-n:]) for ids, n in zip(full, sizes)]
            lengths.append(max(len(ids) for ids, _, _ in sequences))
            if (cut := lengths[-1] - limit) > 0:
                if overflow != "truncate":
                    continue
                if len(head) - cut <= start:
                    raise DataError(f"{row.where}: the options alone fill {limit} tokens. Raise data.max_length.")
                # from the prompt's start, the same tokens for every option; what the tokenizer puts first stays
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

    def rendered(self, rows: list[Row]) -> tuple[list[str], list[int]]:
        """(prompts, labels). DataError lists every row whose fields or label are not as wanted."""
        names = list(self.options)
        seen = Counter(value_as_text(row.fields.get(self.label)) for row in rows)
        if not seen.keys() & self.options.keys():
            raise DataError(
                f"{file_of_rows(rows)}: no row's label is one of task.options "
                f"({', '.join(map(make_printable, names))}). There is: "
                f"{', '.join(f'{make_printable(word)} ({n:,} rows)' for word, n in seen.most_common(8))}. Name "
                "them in task.options: "
                f"{{{', '.join(f'{make_printable(word)}: ...' for word in sorted(seen)[:2])}}}."
            )
        faults: list[DataError] = []
        prompts, labels = [], []
        for row in rows:
            try:
                label = read_field_text(row, self.label)
                if label not in self.options:
                    there = ", ".join(map(make_printable, names)) + f"){suggest_nearest(label, names) or '.'}"
                    raise DataError(f'{row.where}: label "{make_printable(label)}" is not one of task.options ({there}')
                prompts.append(self.render(row))
                labels.append(names.index(label))
            except DataError as e:
                faults.append(e)
        raise_faults(faults)
        return prompts, labels

    def over(self, train: Examples, seed: int, size: int) -> ClassifyTraining:
        return ClassifyTraining(self, train, seed, size)


@dataclass
class ClassifyTraining(AbstractTraining):
    """A run of Classify."""

    def outputs(self, model: Any, batch: Batch, copies: int) -> Tensor:
        """Log-probabilities of the options, up to a constant an example: [copies, B, options], float64 on the host."""
        if batch.examples.per == 1:
            scores: Tensor = model.logits(model.hidden(batch, copies)[:, 0], batch.targets[0]).double().cpu()
        else:
            sums, counts = sum_log_likelihoods(model, batch, copies)
            scores = sums / counts
        return scores.view(copies, len(batch), -1)

    def score(self, model: Any, batch: Batch, copies: int) -> Tensor:
        """Cross-entropy over the options, or 1 - reward of the likeliest: [copies, B], float64."""
        outputs = self.outputs(model, batch, copies)
        if self.options.objective == "loss":
            log_p = torch.log_softmax(outputs, dim=-1)
            right: Tensor = log_p.gather(-1, batch.labels.expand(copies, -1)[..., None])[..., 0]
            return -right
        return 1 - self.rewards(batch, outputs)

    def rewards(self, batch: Batch, outputs: Tensor) -> Tensor:
        """[copies, B], float64: of the likeliest options."""
        chosen = outputs.argmax(-1)
        if self.options.objective == "accuracy":
            return (chosen == batch.labels).double()
        labels, notes = list(self.options.options), batch.notes
        found = [
            _objective.compute_rewards(self.options.objective, notes, [labels[i] for i in row])
            for row in chosen.tolist()
        ]
        return torch.tensor(found, dtype=torch.float64)

    def judge(self, model: Any, examples: Examples, calibrate: int) -> dict[str, Any]:
        """Accuracy raw, with the label bias removed (the options' mean log p on training rows), and of the majority."""
        scores, labels = self.log_shares(model, examples), torch.tensor(examples.labels)
        bias = self.log_shares(model, self.train.head(calibrate)).mean(0)

        def share(x: Tensor) -> float:
            return (x.argmax(-1) == labels).double().mean().item()

        found = {
            "loss": -scores.gather(-1, labels[:, None]).mean().item(),
            "count": len(labels),
            "accuracy": share(scores),
            "calibrated": share(scores - bias),
            "majority": max(Counter(examples.labels).values()) / len(labels),
        }
        if _objective.is_function(self.options.objective):
            whole = examples.collate(range(len(examples)))
            found["reward"] = self.rewards(whole, scores[None]).mean().item()
        return found

    def replies(self, model: Any, examples: Examples) -> list[tuple[str, str]]:
        names = list(self.options.options)
        picks = self.log_shares(model, examples).argmax(-1).tolist()
        return [(names[right], names[pick]) for right, pick in zip(examples.labels, picks)]

    def log_shares(self, model: Any, examples: Examples) -> Tensor:
        """Log-probabilities of the options among themselves: [N, options], float64."""
        found: list[tuple[int, Tensor]] = []
        for chosen in evaluation_batches(examples):
            scores = self.outputs(model, examples.collate(chosen), 1)[0]
            found += zip(chosen, torch.log_softmax(scores, dim=-1))
        return torch.stack([row for _, row in sorted(found, key=lambda pair: pair[0])])

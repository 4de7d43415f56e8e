"""Classification by the word that fills a mask in a prompt. The loss is CE(softmax(the words' logits at the mask), label).

The prompts are LM-BFF's (arXiv 2012.15723), as in MeZO's RoBERTa experiments (arXiv 2305.17333, App. E), such as
<s> text It was<mask>.</s>. The masked language model's own head scores the words, so that no weight starts at random.
"""

from __future__ import annotations

import string
from dataclasses import dataclass, field, replace
from itertools import chain
from typing import TYPE_CHECKING, Annotated, ClassVar, NamedTuple

from annotated_doc import Doc

from ...core.types import AbstractTask
from ...errors import DataError, make_printable
from ..rows.fields import require_fields
from ..rows.row import Row, RowError
from ._encode import check_overflow
from ._examples import Examples
from .classify import Classify, ClassifyTraining

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


MASK_FIELD = "mask"


@dataclass(frozen=True)
class Mlm(AbstractTask):
    """The task of filling a mask, and its options.

    Each field, and each text between them, is tokenised apart, as in LM-BFF, so that truncating a field takes nothing else
    along. Unlike there, spaces at a field's ends are stripped.
    """

    head: ClassVar[str] = "MaskedLM"
    prompt: Annotated[str, Doc("A template over the row's fields and {mask}.")] = "{text} It was{mask}."
    options: Annotated[dict[str, str], Doc("For every label, the word that fills the mask: one token.")] = field(
        default_factory=lambda: {"negative": " terrible", "positive": " great"}
    )
    label: Annotated[str, Doc("The field with the label.")] = "label"

    def __post_init__(self) -> None:
        if f"{{{MASK_FIELD}}}" not in self.prompt or MASK_FIELD in self.fields():
            raise ValueError(f"prompt: write {{{MASK_FIELD}}} once, where the word is to stand")

    def _plainly(self) -> Classify:
        """Return the task without the mask. ValueError: the prompt or the options are not valid."""
        return Classify(self.prompt.replace(f"{{{MASK_FIELD}}}", "", 1), self.options, self.label)

    @property
    def labels(self) -> list[str]:
        """The labels that an example may have, in order."""
        return list(self.options)

    def fields(self) -> list[str]:
        """Return the fields of a row that its prompt is made of."""
        return self._plainly().fields()

    def content(self, row: Row) -> str:
        """Return the prompt of a row, without its mask. DataError: a field is missing or empty."""
        return self._plainly().render(row)

    def encode(
        self, rows: list[Row], tokenizer: PreTrainedTokenizerBase, limit: int, overflow: str
    ) -> tuple[Examples, dict[str, int]]:
        """Return the tokenised rows, and how many were truncated or dropped.

        limit: the number of tokens in a forward at most.
        DataError: the tokenizer has no mask, a word is not one token, a row's label is no option, a prompt is too
        long without its fields, or `check_overflow` raises it.
        """
        start, end = tokenizer.cls_token_id, tokenizer.sep_token_id
        if None in (start, end, tokenizer.mask_token_id):
            raise DataError(
                "task: mlm fills a mask, and this tokenizer has none. Use a masked language model such as RoBERTa, or "
                "task: {name: classify}."
            )
        require_fields(rows, self.fields(), self.label)
        _, labels = self._plainly().render_rows(rows)
        words, prompts = self._words(tokenizer), self._tokenised(rows, tokenizer)
        examples, lengths = Examples(1), []
        for i, (row, label) in enumerate(zip(rows, labels)):
            parts = [segment[i] for segment in prompts.segments]
            lengths.append(2 + sum(map(len, parts)))
            cut = lengths[-1] - limit
            if cut > 0:
                if overflow != "truncate":
                    continue
                if not truncate_fields(parts, prompts.fields, cut):
                    raise RowError(
                        [row.where], f"{row.where}: the prompt alone fills {limit} tokens. Raise data.max_length."
                    )
            examples.tokens.append([start, *chain(*parts), end])
            examples.rows.append([1 + sum(map(len, parts[: prompts.mask]))])
            examples.targets.append(words)
            examples.labels.append(label)
            examples.names.append(row.where)
        return examples, check_overflow(rows, lengths, limit, overflow, "the longest field, from the right")

    def _words(self, tokenizer: PreTrainedTokenizerBase) -> list[int]:
        """Return the token of each option's word. DataError: a word is not one known token, or has another word's token."""
        tokens: list[int] = []
        for word in self.options.values():
            ids = tokenizer(word, add_special_tokens=False).input_ids
            if len(ids) != 1 or ids[0] in (*tokens, tokenizer.unk_token_id):
                spelled = " ".join(tokenizer.convert_ids_to_tokens(ids))
                raise DataError(
                    f"task.options: '{make_printable(word)}' is {len(ids)} token{'' if len(ids) == 1 else 's'} "
                    f"({make_printable(spelled)}), and "
                    "a mask holds one known token, another for each option. Most words want a space before them."
                )
            tokens += ids
        return tokens

    def _tokenised(self, rows: list[Row], tokenizer: PreTrainedTokenizerBase) -> SegmentedPrompts:
        """Return the rows' prompts as tokenised segments, which are fields, the mask, and the texts between them."""
        segments: list[list[list[int]]] = []
        fields, place, plainly = [], 0, self._plainly()

        def tokenise(texts: list[str]) -> list[list[int]]:
            ids: list[list[int]] = tokenizer(texts, add_special_tokens=False).input_ids
            return ids

        for literal, name, spec, _ in string.Formatter().parse(self.prompt):
            text = literal if name is None else literal.rstrip(" ")  # a space is part of the word that follows
            segments.append(tokenise([text]) * len(rows))
            if name == MASK_FIELD:
                place = len(segments)
                segments.append([[tokenizer.mask_token_id]] * len(rows))
            elif name is not None:
                field_alone = replace(plainly, prompt=f"{{{name}:{spec}}}" if spec else f"{{{name}}}")
                fields.append(len(segments))
                segments.append(tokenise([literal[len(text) :] + field_alone.render(row) for row in rows]))
        return SegmentedPrompts(segments, fields, place)

    def make_training(self, train: Examples, seed: int, size: int) -> ClassifyTraining:
        """Return the task of a run over these examples, in batches of `size`."""
        return ClassifyTraining(self._plainly(), train, seed, size)


class SegmentedPrompts(NamedTuple):
    """The tokenised prompts of a set, cut into the segments of its template.

    Attributes:
        segments: token ids by segment and row.
        fields: the numbers of the segments that are fields.
        mask: that of the mask.
    """

    segments: list[list[list[int]]]
    fields: list[int]
    mask: int


def truncate_fields(parts: list[list[int]], fields: list[int], cut: int) -> bool:
    """Take `cut` tokens off the ends of a prompt's fields, each from the field that is the longest at that time.

    Args:
        parts: the token ids of each segment, which are changed.
        fields: the numbers of the segments that are fields.

    Returns:
        Whether every field has a token left; where one would not, nothing more is taken.
    """
    for _ in range(cut):
        longest = max(fields, key=lambda j: len(parts[j]))
        if len(parts[longest]) < 2:
            return False
        parts[longest] = parts[longest][:-1]
    return True

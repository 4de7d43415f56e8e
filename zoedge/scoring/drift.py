"""This module measures how far training has moved a model from its base on text that the task does not score.

A fine-tune can wreck a model's other abilities while its own loss falls. Two numbers, both in nats a token, show it:

- drift: KL(base || tuned), the mean over tokens of the run's own held-out rows whose prediction no loss reads (the prompt).
  Where the task scores every token (`lm`), it is measured on the ordinary text. The base itself has 0.
- text: the cross-entropy of sixty ordinary sentences (ordinary.txt), which is compared with the base's own.

Both are of the whole vocabulary. What the base predicts is stored before training, because `space: full` moves the base's
own weights. Its logits go to a file, so that a run holds no more of them than a chunk.
"""

from __future__ import annotations

import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING

import torch
from torch import Tensor

from ..errors import StorageError
from .tasks._encode import tokenise_texts
from .tasks._examples import Batch, Examples, pad_right

if TYPE_CHECKING:
    from .models.base import Base

TEXT_FILE = Path(__file__).with_name("ordinary.txt")
MAX_ROWS = 64  # of a set, the first ones, that the drift is measured on
MAX_FORWARD = 2048  # padded token rows of these at most, unless one row alone has more: one forward
MAX_TOKENS = 256  # unscored tokens among them, evenly spaced
COLUMNS = 2048  # of the head at once: 5 MB of SmolLM2's in float32, and 2 MB of logits of MAX_TOKENS positions


def read_ordinary_text() -> list[str]:
    """Return the paragraphs of the ordinary text, without the lines that say where it is from."""
    paragraphs = TEXT_FILE.read_text(encoding="utf-8").split("\n\n")
    return [paragraph.strip() for paragraph in paragraphs if not paragraph.startswith("#")]


def encode_ordinary_text(base: Base) -> Examples:
    """Return the ordinary text as one sequence for each paragraph; all tokens but each first one are scored.

    A paragraph is cut at half of the base's context, which virtual tokens leave free: so the text is the same with them.
    """
    examples, longest = Examples(1), min(base.context_length, (base.context_length + base.ahead) // 2)
    sequences, _ = tokenise_texts(base.tokenizer, read_ordinary_text())
    for i, ids in enumerate(sequences):
        cut = ids[: longest + 1]  # the last one is only predicted
        if len(cut) > 1:
            examples.add(cut, list(range(1, len(cut))), 0, f"{TEXT_FILE.name}: paragraph {i + 1}")
    return examples


def sample_unscored(examples: Examples) -> dict[int, list[int]]:
    """Return where the drift of some examples is measured: positions by sequence; none if every token is scored.

    A position is that of a token whose successor the sequence holds and no loss reads. Of an example with several
    sequences, which share their prompt, the first is taken. Which positions are taken depends on the tokens alone.
    """
    places: list[tuple[int, int]] = []
    longest = 0
    for count, i in enumerate(range(0, len(examples.tokens), examples.sequences_each), 1):
        longest = max(longest, len(examples.tokens[i]))
        if count > MAX_ROWS or (count > 1 and count * longest > MAX_FORWARD):
            break
        scored = set(examples.rows[i])
        places += [(i, row) for row in range(len(examples.tokens[i]) - 1) if row not in scored]
    return sample_evenly(places)


def sample_evenly(places: list[tuple[int, int]]) -> dict[int, list[int]]:
    """Return at most MAX_TOKENS of some (sequence, position), evenly spaced, as positions by sequence."""
    size = min(len(places), MAX_TOKENS)
    sampled: dict[int, list[int]] = {}
    for i, row in (places[j * len(places) // size] for j in range(size)):
        sampled.setdefault(i, []).append(row)
    return sampled


@dataclass
class Reference:
    """What the base predicts at some positions of a set.

    Attributes:
        batch: the sequences of these positions.
        taken: which of the batch's rows are positions, and not padding, [S, R].
        normaliser: the logarithm of the sum of exp(logits) at each of the N positions, [N] in float64.
        file: the logits, chunk by chunk of the vocabulary, in float32.
    """

    batch: Batch
    taken: Tensor
    normaliser: Tensor
    file: IO[bytes]


class DriftMeter:
    """Measures drift and text of a base whose space stands at its start when the meter is made.

    Attributes:
        base_text: the nats a token of the base itself on the ordinary text.
    """

    def __init__(self, base: Base, folder: Path):
        """Measure the ordinary text on the base. folder: where temporary files are. StorageError: the disk is full."""
        self.base, self.folder = base, folder
        self.text = encode_ordinary_text(base)
        for _ in base.cache_trunk(self.text, folder):
            pass
        self.base_text = self.measure_text()
        # by the id of a set, which lives as long as the meter
        self.references: dict[int, tuple[Examples, Reference]] = {}

    def add(self, examples: Examples) -> None:
        """Store what the base predicts on a set, so that its drift can be measured later. No point may be held."""
        sampled, source = sample_unscored(examples), examples
        if not sampled:
            source = self.text
            sampled = sample_evenly([(i, row) for i, rows in enumerate(source.rows) for row in rows])
        index = list(sampled)
        ids = pad_right([source.tokens[i] for i in index], 0)
        rows = pad_right(list(sampled.values()), -1)
        nothing = torch.zeros(len(index), dtype=torch.long)
        batch = Batch(source, index, ids, rows.clamp(min=0), torch.full_like(rows, -1), nothing, 0)
        reference = Reference(batch, rows >= 0, torch.empty(0), tempfile.TemporaryFile(dir=self.folder))
        total: Tensor | None = None
        for _, logits in self.base.iterate_logits(self._states(reference), COLUMNS):
            self._write(reference.file, logits)
            total = add_normaliser(total, logits)
        assert total is not None
        reference.normaliser = total
        self.references[id(examples)] = (examples, reference)

    def measure(self, examples: Examples) -> float:
        """Return the drift on a set that `add` has stored, at the point that is held: KL(base || tuned), nats a token."""
        _, reference = self.references[id(examples)]
        reference.file.seek(0)
        total: Tensor | None = None
        # the mean of base logit - tuned logit, as the base weighs them
        difference = torch.zeros_like(reference.normaliser)
        for _, logits in self.base.iterate_logits(self._states(reference), COLUMNS):
            raw = bytearray(reference.file.read(logits.numel() * logits.element_size()))
            before = torch.frombuffer(raw, dtype=torch.float32).view(logits.shape).to(logits.device)
            total = add_normaliser(total, logits)
            weights = (before - reference.normaliser[:, None].float()).exp_()
            difference += before.sub_(logits).mul_(weights).sum(-1).double()
        assert total is not None
        mean = float((difference + total - reference.normaliser).mean())
        return 0.0 if mean < 0 else mean  # rounding alone takes it below 0

    def measure_text(self) -> float:
        """Return the cross-entropy of the ordinary text at the point that is held, nats a token."""
        total, count = 0.0, 0
        for chosen in self.text.sorted_batches(4):  # four paragraphs are about 250 tokens, as many as MAX_TOKENS
            batch = self.text.collate(chosen)
            scored = batch.targets >= 0
            h = self.base.hidden_states(batch, 1)[scored.to(self.base.device)]
            total -= float(self.base.log_likelihood(h, batch.targets[scored], COLUMNS).double().sum())
            count += len(h)
        return total / count

    def _states(self, reference: Reference) -> Tensor:
        """Return the hidden states at a reference's positions, [N, H]."""
        return self.base.hidden_states(reference.batch, 1)[reference.taken.to(self.base.device)]

    def _write(self, file: IO[bytes], logits: Tensor) -> None:
        try:
            file.write(logits.cpu().contiguous().numpy().tobytes())
            file.flush()
        except OSError as e:
            raise StorageError(
                f"{self.folder}: cannot write what the base predicts: {os.strerror(e.errno or 0)}. Free space there."
            ) from e


def add_normaliser(total: Tensor | None, logits: Tensor) -> Tensor:
    """Return the logarithm of the sum of exp over one more chunk of logits [N, C], [N] in float64; None: of the first."""
    summed = logits.logsumexp(-1).double()
    return summed if total is None else torch.logaddexp(total, summed)

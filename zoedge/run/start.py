"""This module computes what a space starts with, before the first step: a classifier in closed form (`space.start: probe`).

One pass over the labelled training rows gives features and option logits (scoring/probe/features.py); a logistic regression
on them (scoring/probe/fit.py) is written as a term of low rank on the last block's last Linear. It is a linear probe in the
form of LoRA: it needs forward passes alone, and it reads hidden states, so that the model is no black box to it. Of a task
without labels the right answers' tokens are fitted, over the whole vocabulary (scoring/probe/answers.py).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from ..core.types import Leaf
from ..errors import DataError, make_printable
from ..methods.spaces._frozen import FrozenTerm
from ..methods.spaces.aligned import AlignedSpace
from ..scoring.probe.answers import choose_examples, collect_answers, fit_answers
from ..scoring.probe.features import (
    Features,
    choose_rows,
    collect_features,
    option_directions,
    option_logits,
    option_slopes,
    write_module,
)
from ..scoring.probe.fit import MIN_ROWS, MIN_ROWS_OF_A_LABEL, Design, Fit, choose_fit, name_candidate, whiten
from ..scoring.probe.tail import Tail
from ..scoring.tasks._training import pack_batches
from .basis import BASIS_ROWS, align_space
from .display import Plain
from .folder import append_metric
from .setup import Measuring, cache_trunk, fill_trunk
from .visits import MAX_START_ROWS, count_compared_rows

if TYPE_CHECKING:
    from ..scoring.models.base import Base
    from ..scoring.tasks._examples import Examples

MAX_FEATURES = 256  # 512 take minutes to fit to six labels, and gain nothing on two
# of what the term does to unscored positions. On films .05 gives .850 and + .131 nats of ordinary text, .03 .853 and + .197
DRIFT_WEIGHT = 0.05
SHARES = (1.0, 0.5, 0.25, 0.0)  # of the fitted term, of which the exact loss chooses


class Start(NamedTuple):
    """A computed start: B A on a module, and what it was chosen by.

    Attributes:
        module: the full name of the Linear module.
        a, b: A [r, in] and B [out, r]; r is 0 where nothing was better than something.
        fit: the regression.
        passes: the forward passes of a row that it took.
        share: of the fitted term that is kept: 1, unless the exact loss was lower at less.
        loss: the mean loss of these rows with the term, computed by what follows the last block.
        of_tokens: it is fitted to answers over the whole vocabulary, and losses are nats a token.
    """

    module: str
    a: Tensor
    b: Tensor
    fit: Fit
    passes: int
    share: float
    loss: float
    of_tokens: bool = False

    def sentence(self) -> str:
        """Return what it is and what it was chosen by, on one line."""
        rows = f"closed-form start from one pass over {self.passes:,} rows: "
        if not self.fit.tried:
            few, what = f"fewer than {MIN_ROWS} rows", "tokens"
            if not self.of_tokens:
                few, what = f"{few}, or than {MIN_ROWS_OF_A_LABEL} of a label", "labels"
            return f"{rows}the bias for some {what} is taken off ({few}: no more can be learnt from them safely)"
        if not len(self.a):
            return f"{rows}nothing, which has the lowest cross-validated loss"
        chosen, nothing = (name_candidate(*pair) for pair in ((self.fit.features, self.fit.ridge), (0, 0.0)))
        tried = self.fit.tried
        return f"{rows}{chosen}; cross-validated loss {tried[chosen]:.4f}, without it {tried[nothing]:.4f}"


def compute_start(measuring: Measuring, folder: Path, show: Plain) -> None:
    """Compute the start that the space's options ask for, put it into the space, and note what it was chosen by.

    DataError: the recipe asks for one, and these rows have none. If only `derive` asks, the run begins without it.
    """
    if not measuring.recipe.space.wants_start:
        return
    cache_trunk(measuring, folder, show)
    examples, has_labels = measuring.texts.train, measuring.recipe.task.labels
    if isinstance(measuring.space, AlignedSpace):
        fill_trunk(measuring, choose_rows(examples, BASIS_ROWS), folder, show)
        align_space(measuring, measuring.space, folder, show)
        return
    choose = choose_rows if has_labels else choose_examples
    if not has_labels or has_token_options(measuring):  # else the right options are read as a set of their own
        fill_trunk(measuring, choose(examples, MAX_START_ROWS), folder, show)
    try:
        with show.phase("fitting the closed-form start"):
            start = fit_start(measuring)
    except DataError as e:
        if all(one.path != "space.start" for one in measuring.recipe.derived):
            raise
        show.say(f"no closed-form start, which the recipe does not ask for either. {e}")
        return
    if len(start.a):
        measuring.space.freeze_term(start.module, start.a, start.b)
    show.say(start.sentence())
    fit = start.fit
    facts = {"features": fit.features, "ridge": fit.ridge if math.isfinite(fit.ridge) else None, "tried": fit.tried}
    append_metric(folder, event="start", passes=start.passes, share=start.share, loss=start.loss, **facts)


class WithTerm:
    """The base with a computed start and nothing else, as something that evaluation can visit."""

    def __init__(self, base: Base, start: Start):
        self.base, self.term = base, FrozenTerm.of(start.module, start.a, start.b)

    @contextmanager
    def visit(self, deltas: Sequence[Callable[[Leaf], Any]]) -> Iterator[None]:
        """Add the term to its module while the context is open."""
        if not self.term.rank:
            yield
            return
        hook = self.term.hook_module(self.base.model.get_submodule(self.term.name), self.base.dtype, lambda: True)
        try:
            yield
        finally:
            hook.remove()


def has_token_options(measuring: Measuring) -> bool:
    """Return whether every example has the same options, each of one token."""
    return measuring.task.option_count > 0 and measuring.texts.train.sequences_each == 1


def compare_start(measuring: Measuring) -> Start | None:
    """Return the closed-form start that stands beside a run without one; None: its task or its rows have none.

    It takes at most COMPARED_SHARE of the run's passes, or COMPARED_ROWS (visits.py).
    """
    rows, examples = count_compared_rows(measuring.recipe), measuring.texts.train
    if not has_token_options(measuring) or len({examples.labels[i] for i in choose_rows(examples, rows)}) < 2:
        return None
    return fit_start(measuring, rows)


def fit_start(measuring: Measuring, rows: int = MAX_START_ROWS) -> Start:
    """Return the closed-form start of a run, fitted to `rows` training rows at most.

    Options of several tokens are fitted as answers are: the right option's tokens, over the whole vocabulary.

    DataError: the rows have one label alone.
    """
    examples = measuring.texts.train
    if not measuring.recipe.task.labels:
        return fit_answer_start(measuring, examples, rows)
    chosen = choose_rows(examples, rows)
    labels = {examples.labels[i] for i in chosen}
    if len(labels) < 2:
        name = make_printable(measuring.recipe.task.labels[labels.pop()])
        raise DataError(
            f"space.start: probe: all {len(chosen):,} training rows have the label {name}, so that nothing tells the labels "
            "apart. Add rows of another label."
        )
    if not has_token_options(measuring):
        return fit_answer_start(measuring, examples.right_options(), rows)
    sizes = [len(examples.tokens[i]) for i in chosen]
    batches = ([chosen[i] for i in places] for places in pack_batches(sizes))
    features = collect_features(measuring.base, examples, chosen, batches)
    logits = option_logits(measuring.base, torch.tensor(examples.targets[0]))
    return fit_features(features, logits, write_module(measuring.base)[0])


def fit_answer_start(measuring: Measuring, examples: Examples, rows: int) -> Start:
    """Return the start that is fitted to the right answers' tokens of `rows` examples at most, over all tokens."""
    base = measuring.base
    chosen = choose_examples(examples, rows)
    sizes = [len(examples.tokens[i]) for i in chosen]
    features = collect_answers(base, examples, chosen, [[chosen[i] for i in places] for places in pack_batches(sizes)])
    a, b, fit = fit_answers(base, features)
    module, tail = write_module(base)[0], Tail.of(base)

    def loss(share: float) -> float:
        term = FrozenTerm.of(module, share * a, b)  # as it will be read from the log
        states = features.states + features.inputs @ term.a.T @ term.b.T
        return float(tail.losses(states, features.targets).mean())

    losses = {share: loss(share) for share in (SHARES[0], SHARES[-1])}
    if losses[SHARES[0]] >= losses[SHARES[-1]]:  # seldom: the whole vocabulary is read for each
        losses |= {share: loss(share) for share in SHARES[1:-1]}
    best = min(losses, key=losses.__getitem__)
    return Start(module, best * a if best else a[:0], b, fit, len(chosen), best, losses[best], of_tokens=True)


def fit_features(features: Features, logits: Callable[[Tensor], Tensor], module: str) -> Start:
    """Return the start that suits these features."""
    b = option_directions(option_slopes(logits, features.states))
    whitening = whiten(features.inputs, MAX_FEATURES)
    others = features.others.double() @ whitening.T
    design = Design(
        phi=features.inputs.double() @ whitening.T,
        moves=option_slopes(logits, features.states, b),
        offset=features.logits.double(),
        labels=features.labels,
    )
    fit = choose_fit(design, DRIFT_WEIGHT * others.T @ others / len(others))
    r = fit.r @ whitening[: fit.features]
    moved = features.inputs.double() @ r.T @ b.T
    losses = {}
    for share in SHARES:
        exact = logits(features.states + (share * moved).float()).double()
        losses[share] = float(torch.nn.functional.cross_entropy(exact, features.labels))
    best = min(SHARES, key=losses.__getitem__) if fit.tried else 1.0
    return Start(module, (best * r).float() if best else r[:0].float(), b.float(), fit, len(design), best, losses[best])

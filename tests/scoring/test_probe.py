"""The closed-form start: what it takes from a pass is the network's own, and the regression is the minimum that it says."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

import pytest
import torch
from helpers.scores import CLOSE, FAMILIES, Get, far, random_sentences

from zoedge.core.types import Leaf
from zoedge.methods.noise.rademacher import Rademacher
from zoedge.methods.spaces.lora import Lora
from zoedge.recipe.sections import Model
from zoedge.run.start import fit_features
from zoedge.scoring.models.base import Base
from zoedge.scoring.models.loading import load_base
from zoedge.scoring.probe import fit as probe_fit
from zoedge.scoring.probe.features import collect_features, option_logits, option_slopes, write_module
from zoedge.scoring.probe.fit import Design, choose_fit, fold_numbers, make_penalty, minimise, whiten

EXAMPLES = random_sentences(24)
ALL = list(range(24))
OPTIONS = torch.tensor([5, 6])


@pytest.fixture(scope="module")
def loaded(families: dict[str, Path], roberta: Path) -> Get:
    """A family's base, quantised, loaded once."""
    return lru_cache(lambda family: load_base(Model(source=str((families | {"roberta": roberta})[family]))))


@pytest.fixture
def clean(loaded: Get) -> Iterator[Get]:
    """The same bases, handed back without cut and hooks."""
    used: list[Base] = []

    def get(family: str) -> Base:
        used.append(loaded(family))
        return used[-1]

    yield get
    for base in used:
        base.cut = 0
        for module in base.model.modules():
            if isinstance(module, torch.nn.Linear) and module is not base.model.get_output_embeddings():
                module._forward_hooks.clear()
                module._forward_pre_hooks.clear()


def still(leaf: Leaf) -> None:
    return None


# -- features


@pytest.mark.parametrize("family", [*FAMILIES, "roberta"])
def test_a_term_in_the_network_does_what_the_features_say(clean: Get, family: str) -> None:
    base = clean(family)
    features = collect_features(base, EXAMPLES, ALL, EXAMPLES.sorted_batches(5))
    logits = option_logits(base, OPTIONS)
    assert far(logits(features.states), features.logits) < CLOSE  # what follows the last block is told whole
    batch = EXAMPLES.collate(ALL)
    assert far(base.logits(base.hidden_states(batch, 1)[:, 0], OPTIONS), features.logits) < CLOSE
    name, module = write_module(base)
    random = torch.Generator().manual_seed(3)
    a = torch.randn(2, module.in_features, generator=random) / features.inputs.norm(dim=1).mean()
    b = torch.randn(module.out_features, 2, generator=random) * 0.3
    space = Lora(rank=2, layers="last 1", start="probe").attach(base, 1, Rademacher())
    space.freeze_term(name, a, b)
    assert space._frozen is not None
    with space.visit([still]):
        held = base.logits(base.hidden_states(batch, 1)[:, 0], OPTIONS)
    predicted = logits(features.states + features.inputs @ space._frozen.a.T @ space._frozen.b.T)
    assert far(held, predicted) < 2 * CLOSE
    assert far(predicted, features.logits) > 0.05  # and it moves them
    assert far(base.logits(base.hidden_states(batch, 1)[:, 0], OPTIONS), features.logits) < CLOSE  # only while held


@pytest.mark.parametrize("family", ["llama", "opt", "opt_350m", "gemma", "pythia", "roberta"])
def test_slopes_are_the_derivative_of_the_centred_logits(clean: Get, family: str) -> None:
    base = clean(family)
    features = collect_features(base, EXAMPLES, ALL, EXAMPLES.sorted_batches(8))
    logits, random = option_logits(base, OPTIONS), torch.Generator().manual_seed(4)
    b = torch.randn(features.states.shape[1], 3, generator=random)
    step = 1e-2 * float(features.states.norm(dim=1).mean() / b.norm(dim=0).mean())
    slopes = option_slopes(logits, features.states, b.double())
    for i in range(3):
        there, back = (logits(features.states + sign * step * b[:, i]).double() for sign in (1, -1))
        wanted = (there - back) / (2 * step)
        assert far(slopes[:, :, i], wanted - wanted.mean(1, keepdim=True)) < 0.02 * float(wanted.abs().max())
    mean = option_slopes(logits, features.states)
    assert far(mean @ b.double(), slopes.mean(0)) < 1e-5 * float(slopes.abs().max())


def test_other_positions_are_neither_scored_nor_first(clean: Get) -> None:
    base = clean("llama")
    seen: dict[tuple[int, ...], int] = Counter()
    features = collect_features(base, EXAMPLES, ALL, EXAMPLES.sorted_batches(24))
    module = write_module(base)[1]
    whole: list[torch.Tensor] = []
    handle = module.register_forward_pre_hook(lambda m, args: whole.append(args[0].clone()))
    for i in ALL:
        batch = EXAMPLES.collate([i])
        batch.rows = torch.arange(len(EXAMPLES.tokens[i]))[None]
        base.hidden_states(batch, 1)
        inner = whole.pop()[0][1:-1]  # neither the first token nor the scored last one
        for j, other in enumerate(features.others):
            seen[j] += int((inner - other).abs().max(1).values.min() < 1e-4) if len(inner) else 0
    handle.remove()
    assert len(features.others) == sum(min(8, len(t) - 2) for t in EXAMPLES.tokens) and all(seen.values())


# -- the regression


def random_design(n: int, k: int, c: int, signal: float = 1.0, seed: int = 0) -> tuple[Design, torch.Tensor]:
    """Return a design whose labels follow features (with `signal`), and its features' number of columns r."""
    random = torch.Generator().manual_seed(seed)
    phi = torch.randn(n, k, generator=random, dtype=torch.float64)
    phi[:, 0] = 1
    moves = torch.eye(c, dtype=torch.float64)[:, : c - 1] + 0.1 * torch.randn(n, c, c - 1, generator=random).double()
    offset = torch.randn(c, generator=random).double() + 0.3 * torch.randn(n, c, generator=random).double()
    weights = torch.zeros(c - 1, k, dtype=torch.float64)
    weights[:, 1:4] = signal * torch.randn(c - 1, 3, generator=random).double()
    clean = torch.einsum("ncr,nr->nc", moves, phi @ weights.T) * 2
    labels = (clean - torch.rand(n, c, generator=random).double().log().neg().log()).argmax(1)
    return Design(phi, moves, offset, labels), weights


@pytest.mark.parametrize("classes", [2, 3, 6])
def test_newton_ends_at_the_minimum(classes: int) -> None:
    design, _ = random_design(200, 12, classes)
    drift = torch.randn(12, 12, generator=torch.Generator().manual_seed(1)).double()
    penalty = make_penalty(12, 0.03, 0.05 * drift @ drift.T)
    r = minimise(design, penalty).requires_grad_()
    value = design.losses(r).mean() + 0.5 * torch.trace(r @ penalty @ r.T)
    value.backward()
    assert r.grad is not None and r.grad.norm() < 2e-3
    other = torch.zeros_like(r).detach().requires_grad_()
    search = torch.optim.LBFGS([other], max_iter=500, tolerance_grad=1e-9, line_search_fn="strong_wolfe")

    def closure() -> torch.Tensor:
        search.zero_grad()
        loss = design.losses(other).mean() + 0.5 * torch.trace(other @ penalty @ other.T)
        loss.backward()
        return loss

    search.step(closure)
    assert abs(float(closure()) - float(value)) < 2e-6


@pytest.mark.parametrize("n", [30, 400])
def test_whitened_features_have_mean_one_and_unit_squares(n: int) -> None:
    random = torch.Generator().manual_seed(0)
    inputs = torch.randn(n, 100, generator=random) * torch.linspace(0.1, 3, 100) + torch.randn(100, generator=random)
    a = whiten(inputs, 16)
    phi = inputs.double() @ a.T
    assert a.shape == (16, 100) and abs(float(phi[:, 0].mean()) - 1) < 1e-9
    assert far(phi[:, 1:].T @ phi[:, 1:] / n, torch.eye(15).double()) < 1e-6
    assert far(a[1:] @ inputs.double().mean(0), torch.zeros(15).double()) < 1e-9
    assert len(whiten(inputs[:5], 16)) == 5  # five rows have no more directions than that


def test_folds_share_every_label_out_whatever_the_order() -> None:
    labels = torch.tensor([0] * 20 + [1] * 10 + [2] * 5)
    for fold in range(5):
        inside = labels[fold_numbers(labels) == fold]
        assert Counter(inside.tolist()) == {0: 4, 1: 2, 2: 1}


def accuracy(design: Design, r: torch.Tensor) -> float:
    k = r.shape[1]
    logits = design.take_features(k).logits(r) if k else design.offset
    return float((logits.argmax(1) == design.labels).double().mean())


def calibrated(design: Design, by: Design) -> float:
    scores = design.offset.log_softmax(-1) - by.offset.log_softmax(-1).mean(0)
    return float((scores.argmax(1) == design.labels).double().mean())


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("n", [30, 60, 200])
def test_few_rows_are_never_worse_than_calibrated_zero_shot_by_much(n: int, seed: int) -> None:
    whole, _ = random_design(n + 1000, 40, 2, seed=seed)
    design, held = whole.take_rows(torch.arange(n)), whole.take_rows(torch.arange(n, n + 1000))
    fit = choose_fit(design)
    assert accuracy(held, fit.r) >= calibrated(held, design) - 0.02
    assert min(fit.tried.values()) <= fit.tried["1 features, ridge 0.0001"]


@pytest.mark.parametrize("labels", [[0, 1] * 7, [0] * 30 + [1]])
def test_too_few_rows_take_the_bias_off_and_no_more(labels: list[int]) -> None:
    whole, _ = random_design(len(labels), 8, 2)
    design = Design(
        whole.phi, torch.eye(2).double()[None, :, :1].expand(len(labels), 2, 1), whole.offset, torch.tensor(labels)
    )
    fit = choose_fit(design)
    assert fit.features == 1 and not fit.tried
    shifted = design.take_features(1).logits(fit.r).log_softmax(-1)
    wanted = design.offset.log_softmax(-1) - design.offset.log_softmax(-1).mean(0)
    assert far(shifted.diff(dim=1), wanted.diff(dim=1)) < 1e-9


def test_the_drift_guard_moves_other_text_less(clean: Get, monkeypatch: pytest.MonkeyPatch) -> None:
    base = clean("llama")
    features = collect_features(base, EXAMPLES, ALL, EXAMPLES.sorted_batches(8))
    moved = {}
    for weight in (0.0, 0.03, 3.0):
        monkeypatch.setattr("zoedge.run.start.DRIFT_WEIGHT", weight)
        monkeypatch.setattr(probe_fit, "RIDGES", (0.03,))
        monkeypatch.setattr(probe_fit.Candidates, "best", lambda self: (8, 0.03))
        start = fit_features(features, option_logits(base, OPTIONS), "x")
        moved[weight] = float((features.others @ start.a.T @ start.b.T).norm(dim=1).mean())
    assert moved[3.0] < 0.5 * moved[0.0] and moved[3.0] < moved[0.03] < moved[0.0]

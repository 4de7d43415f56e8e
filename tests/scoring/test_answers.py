"""The closed-form start over the whole vocabulary: its linear model is the tail's own, and its fit lowers the exact loss."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.scores import CLOSE, VOCABULARY, Get, far

from zoedge.methods.noise.rademacher import Rademacher
from zoedge.methods.spaces.lora import Lora
from zoedge.recipe.sections import Model
from zoedge.scoring.models.base import Base
from zoedge.scoring.models.loading import load_base
from zoedge.scoring.models.quantised import dequantise_weight
from zoedge.scoring.probe import answers as probe_answers
from zoedge.scoring.probe import tail as probe_tail
from zoedge.scoring.probe.answers import AnswerDesign, AnswerFeatures, Problem, collect_answers, fit_answers
from zoedge.scoring.probe.features import write_module
from zoedge.scoring.probe.fit import make_penalty
from zoedge.scoring.probe.tail import Tail
from zoedge.scoring.tasks._examples import Examples
from zoedge.scoring.tasks._training import mean_loss

EVERY_TAIL = ["llama", "opt", "opt_350m", "gemma", "pythia"]


def answered_questions(count: int, seed: int = 0) -> Examples:
    """Return sequences of random tokens; two words among them decide which of three answers of three tokens follows."""
    random, examples = torch.Generator().manual_seed(seed), Examples(1)
    for i in range(count):
        length = int(torch.randint(6, 20, (1,), generator=random))
        kind = i % 3
        question = torch.randint(3, VOCABULARY, (length,), generator=random).tolist()
        ids = [*question, 20 + kind, 30 + kind, 5, 50 + kind, 9]
        examples.add(ids, list(range(length + 2, length + 5)), 0, f"here:{i}")
    return examples


@pytest.fixture(scope="module")
def loaded(families: dict[str, Path]) -> Get:
    """A family's base, quantised, loaded once."""
    return lru_cache(lambda family: load_base(Model(source=str(families[family]))))


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


def collect(base: Base, examples: Examples) -> AnswerFeatures:
    return collect_answers(base, examples, list(range(len(examples))), examples.sorted_batches(7))


def random_term(design: AnswerDesign, k: int, size: float = 0.3) -> torch.Tensor:
    random = torch.Generator().manual_seed(5)
    return size * torch.randn(design.b.shape[1], k, generator=random, dtype=torch.float64)


@pytest.mark.parametrize("family", EVERY_TAIL)
def test_the_tail_is_the_networks_own(clean: Get, family: str) -> None:
    base, examples = clean(family), answered_questions(24)
    features = collect(base, examples)
    assert features.owners.tolist() == [i for i in range(24) for _ in range(3)]
    assert features.targets.tolist() == [t for line in examples.targets for t in line]
    batch = examples.collate(range(24))
    wanted = base.log_likelihood(base.hidden_states(batch, 1), batch.targets).flatten()
    losses = Tail.of(base).losses(features.states, features.targets)
    assert far(losses, -wanted.double()) < 2 * CLOSE
    assert float(losses.mean()) == pytest.approx(mean_loss(base, examples), abs=CLOSE)


def test_other_positions_are_not_scored(clean: Get) -> None:
    base, examples = clean("llama"), answered_questions(9)
    features = collect(base, examples)
    assert len(features.others) == sum(min(8, len(t) - 1 - len(r)) for t, r in zip(examples.tokens, examples.rows))
    gaps = torch.cdist(features.others, features.inputs)
    assert float(gaps.min()) > 1e-3


@pytest.mark.parametrize("family", EVERY_TAIL)
def test_the_closed_form_is_the_derivative_of_the_loss(clean: Get, family: str) -> None:
    """In float64: the gradient against differences of the loss, the matrix against that of M, the logits' differences."""
    base = clean(family)
    kinds = {m: p.dtype for m, p in base.model.named_parameters() if p.is_floating_point()}
    features = collect(base, answered_questions(12))
    problem = Problem.of(base, features)
    design = problem.design(torch.ones(len(features.targets), dtype=torch.bool))
    r = random_term(design, 5)
    gradient, matrix = design.curves(r)
    logits, step = exact_logits(base, family == "opt_350m"), 1e-5
    moved = design.states.double() + design.phi[:, :5] @ r.T @ design.b.T.double()

    def loss(r: torch.Tensor) -> torch.Tensor:
        states = design.states.double() + design.phi[:, :5] @ r.T @ design.b.T.double()
        return torch.nn.functional.cross_entropy(logits(states), design.targets)

    for place in [(0, 0), (1, 3), (len(r) - 1, 4)]:
        e = torch.zeros_like(r)
        e[place] = step
        wanted = float((loss(r + e) - loss(r - e)) / (2 * step))
        assert float(gradient[place]) == pytest.approx(wanted, rel=1e-3, abs=1e-5)
    slopes = torch.stack(
        [(logits(moved + step * c) - logits(moved - step * c)) / (2 * step) for c in design.b.T.double()], dim=-1
    )  # M [T, V, r]
    shares = logits(moved).softmax(-1)
    mean = torch.einsum("tv,tvr->tr", shares, slopes)
    curves = torch.einsum("tv,tva,tvb->tab", shares, slopes, slopes) - mean[:, :, None] * mean[:, None, :]
    phi = design.phi[:, :5]
    wanted_matrix = torch.einsum("tab,tk,tl->akbl", curves, phi, phi) / len(phi)
    assert far(matrix, wanted_matrix) < 2e-3 * float(wanted_matrix.abs().max())
    assert {m: p.dtype for m, p in base.model.named_parameters() if p.is_floating_point()} == kinds


def exact_logits(base: Base, is_projected: bool) -> Any:
    """Return the tail in float64, written out for each kind of norm."""
    norm: Any = base.facts.read_norm(base.model)
    head = base.facts.head(base.model)
    weight = head.weight.detach().double()
    bias = 0 if head.bias is None else head.bias.detach().double()
    project: Any = base.model.get_submodule("model.decoder.project_out") if is_projected else None
    gain = norm.weight.detach().double()

    def logits(states: torch.Tensor) -> torch.Tensor:
        if isinstance(norm, torch.nn.LayerNorm):
            h = torch.nn.functional.layer_norm(states, states.shape[-1:], gain, norm.bias.detach().double(), norm.eps)
        else:
            eps = base.model.config.rms_norm_eps
            scale = 1 + gain if base.model.config.model_type == "gemma" else gain
            h = states * (states.pow(2).mean(-1, keepdim=True) + eps).rsqrt() * scale
        if is_projected:
            h = h @ dequantise_weight(project).double().T
        return h @ weight.T + bias

    return logits


@pytest.mark.parametrize("family", EVERY_TAIL)
def test_the_fit_lowers_the_exact_loss_and_the_network_has_it(clean: Get, family: str) -> None:
    base, examples, held = clean(family), answered_questions(60), answered_questions(60, seed=1)
    features = collect(base, examples)
    a, b, fit = fit_answers(base, features)
    assert fit.features > 0 and 0 < len(a) <= 16
    space = Lora(rank=2, layers="last 1", start="probe").attach(base, 1, Rademacher())
    space.freeze_term(write_module(base)[0], a, b)
    term: Any = space._frozen
    predicted = Tail.of(base).losses(features.states + features.inputs @ term.a.T @ term.b.T, features.targets).mean()
    before, before_held = mean_loss(base, examples), mean_loss(base, held)
    with space.visit([lambda leaf: None]):
        after, after_held = mean_loss(base, examples), mean_loss(base, held)
    assert after == pytest.approx(float(predicted), abs=1e-4)
    assert after < 0.85 * before and after_held < 0.85 * before_held


def test_every_step_of_the_fit_lowers_the_penalised_loss(clean: Get, monkeypatch: pytest.MonkeyPatch) -> None:
    base = clean("llama")
    problem = Problem.of(base, collect(base, answered_questions(40)))
    design = problem.design(torch.ones(len(problem.phi), dtype=torch.bool))
    penalty = make_penalty(8, 0.1, problem.drift)
    r = torch.zeros(design.b.shape[1], 8, dtype=torch.float64)
    values = []
    monkeypatch.setattr(probe_answers, "MAX_STEPS", 1)
    for _ in range(10):
        values.append(float(design.losses(r).mean() + 0.5 * torch.trace(r @ penalty @ r.T)))
        r = probe_answers.minimise_answers(design, penalty, r)
    assert values == sorted(values, reverse=True) and values[-1] < 0.75 * values[0]
    gradient = design.curves(r)[0] + r @ penalty
    assert float(gradient.norm()) < 0.03 * float(design.curves(torch.zeros_like(r))[0].norm())


def test_a_reduced_vocabulary_gives_nearly_the_loss_of_the_whole(clean: Get, monkeypatch: pytest.MonkeyPatch) -> None:
    base = clean("llama")
    features, whole = collect(base, answered_questions(60)), Tail.of(base)

    def loss() -> float:
        a, b, _ = fit_answers(base, features)
        return float(whole.losses(features.states + features.inputs @ a.T @ b.T, features.targets).mean())

    of_whole = loss()
    monkeypatch.setattr(probe_tail, "WHOLE_LOGITS", 0)
    monkeypatch.setattr(probe_tail, "TOP_TOKENS", 40)
    monkeypatch.setattr(probe_tail, "OTHER_TOKENS", 60)
    reduced = probe_tail.reduce_vocabulary(whole, features.states, features.targets)
    targets = features.targets.unique()
    assert len(reduced) == len(targets) + 100 and bool((reduced.places[targets] >= 0).all())
    zero_shot = [float(t.losses(features.states, features.targets).mean()) for t in (reduced, whole)]
    assert zero_shot[0] == pytest.approx(zero_shot[1], abs=0.05)
    # random weights give every token a like share, so that 60 stand for what 250 say: on a trained model they lose .002
    assert zero_shot[1] - loss() > 0.85 * (zero_shot[1] - of_whole) > 0.85


def test_a_few_rows_fit_the_bias_alone(clean: Get) -> None:
    base = clean("llama")
    features = collect(base, answered_questions(15))
    a, b, fit = fit_answers(base, features)
    assert fit.features == 1 and not fit.tried
    moves = features.inputs @ a.T @ b.T  # along one direction of the inputs: the same for all but for its length
    cosines = torch.nn.functional.cosine_similarity(moves, moves.mean(0, keepdim=True))
    assert float(cosines.abs().min()) > 0.999


def test_the_drift_guard_moves_other_text_less(clean: Get, monkeypatch: pytest.MonkeyPatch) -> None:
    base, moved = clean("llama"), {}
    features = collect(base, answered_questions(40))
    for weight in (0.0, 1.0, 30.0):
        monkeypatch.setattr(probe_answers, "DRIFT_WEIGHT", weight)
        monkeypatch.setattr(Problem, "choose_count", lambda self, losses: 16)
        a, b, _ = fit_answers(base, features)
        moved[weight] = float((features.others @ a.T @ b.T).norm(dim=1).mean())
    assert moved[30.0] < 0.5 * moved[0.0] and moved[30.0] < moved[1.0] < moved[0.0]


def test_examples_are_chosen_up_to_a_number_of_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    examples = answered_questions(50)
    assert probe_answers.choose_examples(examples, 2048) == list(range(50))
    assert len(probe_answers.choose_examples(examples, 20)) == 20
    monkeypatch.setattr(probe_answers, "ANSWER_TOKENS", 30)
    chosen = probe_answers.choose_examples(examples, 2048)
    assert len(chosen) == 10 and chosen == sorted(set(chosen))


def test_the_choice_is_by_whole_examples(clean: Get) -> None:
    base = clean("llama")
    problem = Problem.of(base, collect(base, answered_questions(40)))
    folds = problem.assign_folds(5)
    assert all(len(folds[problem.features.owners == i].unique()) == 1 for i in range(40))
    assert sorted(folds.bincount().tolist()) == [24] * 5
    flat = torch.full((120,), 2.0, dtype=torch.float64)
    noisy = flat + torch.randn(40, generator=torch.Generator().manual_seed(0)).double().repeat_interleave(3)
    noisy -= noisy.mean() - 2  # the standard error of 40 such examples is .16, of 120 such tokens .09
    assert problem.choose_count({0: flat + 1, 1: flat + 0.5, 8: noisy, 16: flat + 0.12}) == 16
    assert problem.choose_count({0: flat + 1, 1: flat + 0.5, 8: noisy, 16: flat + 0.3}) == 8
    assert problem.choose_count({0: flat + 1, 1: noisy, 16: flat + 0.01}) == 1
    flat[:60] = float("nan")  # not held out
    assert problem.choose_count({0: flat + 1, 32: flat, 16: flat + 0.01}) == 32
    assert problem.choose_count({0: flat, 16: flat + 0.01}) == 0


def test_a_term_fits_into_a_logs_header(clean: Get, monkeypatch: pytest.MonkeyPatch) -> None:
    base = clean("llama")
    features = collect(base, answered_questions(20))
    for most, rank in ((300_000, 5), (4 * 192, 4), (5, 1)):  # five different tokens; H 64 and I 128
        monkeypatch.setattr(probe_answers, "TERM_VALUES", most)
        a, b, _ = fit_answers(base, features)
        assert a.shape == (rank, 128) and b.shape == (64, rank)


def test_what_does_not_help_is_left_out(clean: Get, monkeypatch: pytest.MonkeyPatch) -> None:
    base = clean("llama")
    monkeypatch.setattr(Problem, "choose_count", lambda self, losses: 0)
    a, _, fit = fit_answers(base, collect(base, answered_questions(20)))
    assert a.shape == (0, 128) and fit.features == 0 and fit.tried

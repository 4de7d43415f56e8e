"""The last block computed for all points at once equals the last block computed for each: every family that can."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.scores import CLOSE, FAMILIES, attach, deltas, far, load, random_examples, random_sentences

from zoedge.methods.noise.rademacher import Rademacher
from zoedge.methods.spaces._frozen import FrozenTerm
from zoedge.methods.spaces.scales import Scales
from zoedge.scoring.models import quantised
from zoedge.scoring.models.base import Base
from zoedge.scoring.models.points import PointProducts, is_cheaper
from zoedge.scoring.models.quantised import KeptForward

CANNOT = ("gpt_neox", "pythia")  # q, k and v in one matrix


@pytest.fixture(scope="module")
def get(families: dict[str, Path]) -> Callable[..., Base]:
    @lru_cache
    def load_once(family: str, quantization: str) -> Base:
        return load(families[family], quantization)

    return load_once


@pytest.fixture
def clean(get: Callable[..., Base]) -> Any:
    """Bases without caches, hooks and kept weights of other tests."""
    used: list[Base] = []

    def take(family: str, quantization: str = "nf4") -> Base:
        used.append(get(family, quantization))
        return used[-1]

    yield take
    for base in used:
        base.kept.clear()
        base.terms.clear()
        base.set_cut(0)
        for module in base.model.modules():
            if isinstance(module.forward, KeptForward):
                del module.forward
            if module is not base.model.get_output_embeddings() and module is not base.model.get_input_embeddings():
                module._forward_hooks.clear()
                module._forward_pre_hooks.clear()


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many points each forward computed at once."""
    taken: list[int] = []
    real = PointProducts.attend

    def attend(self: PointProducts, *args: Any) -> torch.Tensor:
        taken.append(self.copies)
        return real(self, *args)

    monkeypatch.setattr(PointProducts, "attend", attend)
    return taken


def each(base: Base, batch: Any, copies: int, monkeypatch: pytest.MonkeyPatch) -> torch.Tensor:
    """The same, each point by itself."""
    with monkeypatch.context() as patch:
        patch.setattr(Base, "share_points", lambda *args: None)
        return base.hidden_states(batch, copies)


@pytest.mark.parametrize("train", ["both", "b"])
@pytest.mark.parametrize("family", FAMILIES)
def test_points_at_once_equal_points_by_themselves(
    clean: Any, at_once: list[int], family: str, train: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = clean(family, "nf4" if train == "both" else "none")
    targets = ["query_key_value"] if family in CANNOT else ["q_proj", "v_proj"] if train == "b" else "all"
    space, examples = attach(base, "last 1", targets, train=train), random_sentences(6)
    base.open_trunk(examples, tmp_path)
    batch = examples.collate(range(6))
    for points in (deltas(3), [*deltas(1), lambda leaf: None]):
        with space.visit(points):
            found = base.hidden_states(batch, len(points))
            want = each(base, batch, len(points), monkeypatch)
            assert found.shape == want.shape and found.dtype == want.dtype and far(found, want) < CLOSE
    base_alone = base.hidden_states(batch, 1)
    assert far(base_alone, each(base, batch, 1, monkeypatch)) < CLOSE and far(base_alone, want[:6]) > 1e-3
    assert at_once == ([] if family in CANNOT else [3, 2, 1])


def test_it_is_not_for_other_cuts_rows_and_hooks(
    clean: Any, at_once: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base, few, many = clean("llama"), random_sentences(4), random_examples([2] * 4)
    space = attach(base, "last 1")
    for examples in (few, many):
        base.open_trunk(examples, tmp_path)
    with space.visit(deltas(2)):
        base.hidden_states(few.collate(range(4)), 2)
        assert at_once == [2]
        base.hidden_states(random_sentences(4).collate(range(4)), 2)  # of these, no trunk is kept
        rows = few.collate(range(4))
        rows.rows = torch.arange(40).expand(4, -1)
        base.hidden_states(rows, 2)  # so many rows are scored that values at all positions cost less
        term = FrozenTerm.of("model.layers.2.self_attn.k_proj", torch.ones(1, 64), torch.ones(32, 1))
        module = base.model.get_submodule(term.name)
        plain = base.hidden_states(few.collate(range(4)), 2)
        hook = term.hook_module(module, base.dtype, lambda: True)
        moved = base.hidden_states(few.collate(range(4)), 2)
        hook.remove()
        assert at_once == [2, 2] and far(plain, moved) > 1e-3, "what else is added to a projection counts"
        hook = module.register_forward_pre_hook(lambda m, args: None)
        base.hidden_states(few.collate(range(4)), 2)
        hook.remove()
        assert at_once == [2, 2]
    base.set_cut(1)
    base.open_trunk(few, tmp_path)
    with space.visit(deltas(2)):
        base.hidden_states(few.collate(range(4)), 2)
    assert at_once == [2, 2]
    assert is_cheaper(1, 30, 9, 3, 64) and not is_cheaper(30, 30, 9, 3, 64) and not is_cheaper(9, 30, 9, 3, 64)


@pytest.mark.parametrize("scheme", ["nf4", "fp4", "int8"])
def test_kept_weights_change_no_bit(clean: Any, scheme: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base, examples = clean("opt", scheme), random_sentences(6)
    space, batch = attach(base, "last 1"), examples.collate(range(6))
    monkeypatch.setattr(quantised, "KEPT_BYTES", 0)
    base.open_trunk(examples, tmp_path)
    kept = [m for m in base.model.modules() if isinstance(m.forward, KeptForward)]
    with space.visit(deltas(2)):
        want = base.hidden_states(batch, 2)
        assert not kept, "more than memory allows"
        monkeypatch.setattr(quantised, "KEPT_BYTES", 1 << 20)
        base.kept.clear()
        base.open_trunk(examples, tmp_path)
        for _ in ("dequantised", "kept"):
            assert torch.equal(base.hidden_states(batch, 2), want)
    last, inside = base.blocks[-1], {m for b in base.blocks[:-1] for m in b.modules()}
    kept = [m for m in base.model.modules() if isinstance(m.forward, KeptForward)]
    assert len(kept) == 6 and not inside & set(kept) and set(kept) <= set(last.modules())


def test_scales_that_are_trained_are_not_kept(
    clean: Any, at_once: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base, examples = clean("llama"), random_sentences(6)
    space = Scales(layers="last 1").attach(base, 5, Rademacher())
    batch, losses = examples.collate(range(6)), []
    for limit in (0, 1 << 20):
        monkeypatch.setattr(quantised, "KEPT_BYTES", limit)
        base.kept.clear()
        base.open_trunk(examples, tmp_path)
        with space.visit([lambda leaf: torch.full_like(leaf.value, 0.01)]):
            losses.append(base.hidden_states(batch, 1))
        losses.append(base.hidden_states(batch, 1))
    assert torch.equal(losses[0], losses[2]) and far(losses[1], losses[3]) < CLOSE and far(losses[0], losses[1]) > 1e-3

"""Options in one sequence score as in one each: every family, every point, after virtual tokens, over a kept trunk."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.scores import CLOSE, FAMILIES, VOCABULARY, Get, attach, deltas, far

from zoedge.recipe.sections import Model
from zoedge.scoring.models.base import Base
from zoedge.scoring.models.loading import load_base
from zoedge.scoring.tasks._branches import count_token_rows
from zoedge.scoring.tasks._examples import Batch, Examples
from zoedge.scoring.tasks._training import FORWARD_TOKENS, pack_batches, sum_log_likelihoods

SHAPES = [(40, [20, 20, 21]), (9, [1, 7]), (5, [6]), (0, [4, 2, 3]), (17, [0, 0])]  # a prompt's tokens, its options'
SIZES = [len(options) for _, options in SHAPES]


@pytest.fixture(scope="module")
def loaded(families: dict[str, Path]) -> Get:
    return lru_cache(lambda family: load_base(Model(source=str(families[family]), compute_dtype="fp32")))


@pytest.fixture
def base(loaded: Get, request: Any) -> Iterator[Base]:
    base = loaded(request.param)
    yield base
    base.kept.clear()
    base.cut = 0
    for module in base.model.modules():
        module._forward_hooks.clear()


def options(per: int = 1, shapes: Any = SHAPES) -> Examples:
    """Options of random tokens, no two alike in the first; the loss is of all their tokens and of what follows."""
    random, found = torch.Generator().manual_seed(3), Examples(per)

    def some(count: int) -> list[int]:
        return torch.randint(10, VOCABULARY, (count,), generator=random).tolist()

    for prompt, lengths in shapes:
        head = some(prompt)
        for number, length in enumerate(lengths):
            ids = [*head, *[number, *some(length)][:length]]
            found.tokens.append(ids)
            found.rows.append(list(range(max(0, prompt - 1), len(ids))))
            found.targets.append([*ids[max(1, prompt) :], 7])
    found.labels = [0] * (len(found.tokens) // per)
    return found


def seen(base: Base, batch: Batch, copies: int) -> tuple[torch.Tensor, list[int]]:
    """(log p [copies, S], rows [S, T] of hidden states that the last block but one, or the only other, took)."""
    shapes: list[int] = []
    hook = base.blocks[-2].register_forward_hook(lambda module, args, h: shapes.extend(args[0].shape[:2]))
    found, _ = sum_log_likelihoods(base, batch, copies)
    hook.remove()
    return found, shapes


def apart(base: Base, copies: int, ahead: int = 0) -> float:
    """How far log p of options in one sequence is from that of each in its own: sums of up to 22 tokens."""
    batch = options().collate(range(sum(SIZES)), SIZES)
    assert batch.branches is not None and batch.tokens == 5 * 101 < batch.ids.numel() == 11 * 61
    together, shape = seen(base, batch, copies)
    assert shape == [5 * copies, 101 + ahead], (
        "beyond the context, whose positions end at 96, and Mistral's window of 64"
    )
    alone, shape = seen(base, replace(batch, branches=None), copies)
    assert shape == [11 * copies, 61 + ahead]
    assert copies == 1 or min(far(alone[0], other) for other in alone[1:]) > 0.01, "the points do differ"
    return far(together, alone)


@pytest.mark.parametrize("base", FAMILIES, indirect=True)
def test_points_score_options_together_as_alone(base: Base) -> None:
    assert apart(base, 1) < 10 * CLOSE
    with attach(base).visit(deltas(3)):
        assert apart(base, 3) < 10 * CLOSE


@pytest.mark.parametrize("base", FAMILIES, indirect=True)
@pytest.mark.parametrize("kind", ["prompt", "past"])
def test_after_virtual_tokens(base: Base, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    random = torch.Generator().manual_seed(2)
    like = base.embed_tokens(torch.arange(4)) if kind == "prompt" else base.compute_keys_values(torch.arange(4))
    monkeypatch.setattr(base, kind, torch.randn(2, *like.shape, generator=random) * like.std())
    assert apart(base, 2, 4 if kind == "prompt" else 0) < 10 * CLOSE


@pytest.mark.parametrize("base", FAMILIES, indirect=True)
def test_over_a_trunk_kept_or_not(base: Base, tmp_path: Path) -> None:
    examples = options(2, [(9, [1, 7]), (30, [12, 3])])
    batch = examples.collate([1, 0])
    for cut in range(1, len(base.blocks)):
        base.set_cut(cut)
        assert apart(base, 1) < 10 * CLOSE
        without, _ = sum_log_likelihoods(base, batch, 2)
        assert sum(base.cache_trunk(examples, tmp_path)) == 4
        kept, _ = sum_log_likelihoods(base, batch, 2)
        alone, _ = sum_log_likelihoods(base, replace(batch, branches=None), 2)
        assert batch.branches is not None and max(far(kept, without), far(kept, alone)) < 10 * CLOSE


def test_what_stands_where() -> None:
    examples = Examples(1, [[5, 6, 7], [5, 6, 8, 9], [4]], [[1, 2], [1, 3], [0]], [[7, 3]] * 3, [0] * 3)
    found = examples.collate([0, 1, 2], [2, 1]).branches
    assert found is not None and [count_token_rows(examples.tokens[:2]), count_token_rows(examples.tokens[2:])] == [
        5,
        1,
    ]
    assert found.ids.tolist() == [[5, 6, 7, 8, 9], [4, 5, 5, 5, 5]]
    assert found.places.tolist() == [[0, 1, 2, 2, 3], [0] * 5]
    assert found.owner[0].tolist() == [-1, -1, 0, 1, 1] and found.owner[1, 0] == -1
    assert found.rows.tolist() == [[1, 2, 1, 4], [0, 0, 0, 0]] and found.pick.tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    ("shapes", "better"),
    [
        ([(20, [20, 20])], True),
        ([(0, [2, 2])], False),  # nothing alike
        ([(1, [8] * 8), (1, [1])], False),  # 130 padded rows against 81
        ([(20, [100] * 8)], False),  # 820 rows against 960, measured 8 % slower: each looks back at all of them
        ([(8, [60] * 16)], False),  # 968 rows against 1,088: 18 % slower
        ([(100, [100] * 4)], True),  # 500 rows against 800: 28 % faster
    ],
)
def test_whichever_costs_less(shapes: Any, better: bool) -> None:
    sizes = [len(lengths) for _, lengths in shapes]
    batch = options(1, shapes).collate(range(sum(sizes)), sizes)
    assert (batch.branches is not None) == better
    assert (batch.tokens < batch.ids.numel()) == better


def test_batches_of_like_sizes() -> None:
    sizes = [FORWARD_TOKENS // 4, 7, 2 * FORWARD_TOKENS, FORWARD_TOKENS // 2, FORWARD_TOKENS // 5]
    assert list(pack_batches(sizes)) == [[2], [0, 3], [1, 4]]

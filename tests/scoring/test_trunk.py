"""The lower layers' outputs: computed when they are first read, in blocks that do not depend on the order of reading."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.scores import CLOSE, far, load, random_examples

from zoedge.errors import StorageError
from zoedge.scoring.models.base import Base
from zoedge.scoring.models.trunk_blocks import BLOCK_TOKENS, partition_sequences

LENGTHS = [41, 7, 23, 60, 1, 15]


@pytest.fixture(scope="module")
def shared(llama: Path) -> Base:
    return load(llama)


@pytest.fixture
def base(shared: Base) -> Iterator[Base]:
    """A LLaMA of three blocks, cut before the last one."""
    shared.set_cut(2)
    yield shared
    shared.kept.clear()


@pytest.fixture
def computed(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """The shape [S, T] of every forward of the lower blocks."""
    shapes: list[tuple[int, int]] = []
    real = Base.trunk

    def trunk(self: Base, ids: torch.Tensor, *args: Any) -> torch.Tensor:
        shapes.append((ids.shape[0], ids.shape[1]))
        return real(self, ids, *args)

    monkeypatch.setattr(Base, "trunk", trunk)
    return shapes


def blocks_of_version_1(lengths: list[int]) -> list[tuple[list[int], int]]:
    """How sets were cut into forwards before rows were left out, on which the bits of old runs depend."""
    order, blocks = sorted(range(len(lengths)), key=lambda i: (lengths[i], i)), []
    while order:
        longest, size = lengths[order[-1]], 1
        while size < len(order) and longest * (size + 1) <= 2048:
            size += 1
        blocks.append((order[-size:], longest))
        order = order[:-size]
    return blocks


def test_a_set_that_is_read_whole_is_cut_as_it_ever_was() -> None:
    draw = random.Random(0)
    for count in (1, 2, 40, 900):
        lengths = [draw.choice((1, 3, 30, 31, 32, 90, 3000)) for _ in range(count)]
        blocks = partition_sequences(lengths)
        assert sorted((sorted(b.numbers), b.length) for b in blocks) == sorted(
            (sorted(numbers), length) for numbers, length in blocks_of_version_1(lengths)
        )
        assert [b.length for b in blocks] == sorted((b.length for b in blocks), reverse=True), "the longest first"


def test_rows_that_are_left_out_share_no_forward_with_others_and_change_no_padding() -> None:
    draw = random.Random(1)
    lengths = [draw.randint(8, 60) for _ in range(20_000)]
    planned = draw.sample(range(len(lengths)), 640)
    whole, part = partition_sequences(lengths), partition_sequences(lengths, planned)
    padded = {i: block.length for block in whole for i in block.numbers}
    assert sorted(i for block in part for i in block.numbers) == list(range(len(lengths)))
    assert all(padded[i] == block.length for block in part for i in block.numbers)
    assert all(len(b.numbers) == 1 or len(b.numbers) * b.length <= BLOCK_TOKENS for b in part)
    kinds = [{i in set(planned) for i in block.numbers} for block in part[:200]]
    assert all(len(kind) == 1 for kind in kinds)
    read = [block for block in part if set(block.numbers) & set(planned)]
    tokens = sum(len(block.numbers) * block.length for block in read)
    assert tokens < 1.1 * sum(lengths[i] for i in planned), "about what is read, and not the whole set"


def test_only_what_is_read_is_computed_and_the_order_of_reading_leaves_no_trace(
    base: Base, computed: list[tuple[int, int]], tmp_path: Path
) -> None:
    examples = random_examples([20 + i % 37 for i in range(400)])
    planned = list(range(0, 400, 8))
    orders = [planned, planned[::-1], random.Random(2).sample(planned, len(planned))]
    found = []
    for order in orders:
        base.kept.clear()
        computed.clear()
        base.open_trunk(examples, tmp_path, planned)
        assert not computed, "nothing is computed before it is read"
        states = {i: base.hidden_states(examples.collate([i]), 2) for i in order}
        found.append([states[i] for i in planned])
        assert sum(s * t for s, t in computed) < 1.1 * sum(len(examples.tokens[i]) for i in planned)
    assert all(torch.equal(a, b) for other in found[1:] for a, b in zip(found[0], other))
    base.kept.clear()
    assert sum(base.cache_trunk(examples, tmp_path)) == 400
    whole = [base.hidden_states(examples.collate([i]), 2) for i in planned]
    assert max(map(far, whole, found[0])) < CLOSE
    computed.clear()
    base.hidden_states(examples.collate([1, 2, 3]), 1)
    assert not computed


def test_a_row_that_was_not_planned_is_read_all_the_same(
    base: Base, computed: list[tuple[int, int]], tmp_path: Path
) -> None:
    examples = random_examples(LENGTHS)
    want = base.hidden_states(examples.collate(range(6)), 1)
    base.open_trunk(examples, tmp_path, [0, 3])
    assert far(base.hidden_states(examples.collate(range(6)), 1), want) < CLOSE
    assert base.open_trunk(examples.head(2), tmp_path) is base.open_trunk(examples, tmp_path)
    assert len(base.kept) == 1


def test_the_file_gives_back_what_was_written(base: Base, tmp_path: Path) -> None:
    """And what lies beyond a sequence's end is zero: a masked key must be finite."""
    examples = random_examples(LENGTHS)
    assert sum(base.cache_trunk(examples, tmp_path)) == len(LENGTHS)
    kept = base.kept[id(examples)]
    assert kept.examples is examples, "else another object could get its id()"
    for block in kept.blocks:
        states = base.trunk(examples.collate(block.numbers).ids, torch.tensor([LENGTHS[i] for i in block.numbers]))
        for row, back, i in zip(states, kept.read(block.numbers, 70), block.numbers):
            assert torch.equal(back[: LENGTHS[i]], row[: LENGTHS[i]]) and not back[LENGTHS[i] :].any()
    assert list(tmp_path.iterdir()) == [], "the file has no name"


def test_a_fill_takes_the_threads_of_its_beginning(base: Base, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps may take one thread, and the bits of a product may depend on their number."""
    seen, real = [], Base.trunk

    def trunk(*args: Any) -> torch.Tensor:
        seen.append(torch.get_num_threads())
        return real(*args)

    monkeypatch.setattr(Base, "trunk", trunk)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    examples = random_examples(LENGTHS)
    base.open_trunk(examples, tmp_path)
    torch.set_num_threads(1)
    base.hidden_states(examples.collate([0]), 1)
    assert seen == [2] and torch.get_num_threads() == 1
    torch.set_num_threads(before)


@pytest.fixture
def full_disk(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    def fill() -> None:
        def full(*_: Any) -> int:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr("os.pwrite", full)

    return fill


def test_a_full_disk_is_a_sentence(base: Base, tmp_path: Path, full_disk: Callable[[], None]) -> None:
    full_disk()
    with pytest.raises(StorageError, match=r"trunk cache \(37,632 bytes\): No space left"):
        list(base.cache_trunk(random_examples(LENGTHS), tmp_path))

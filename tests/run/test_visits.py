"""Which training rows a run reads is known before; what it computes of them does not depend on what came before."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
from helpers.models import WORDS
from helpers.recipes import tiny_recipe

from zoedge.core import digests, engine
from zoedge.log.log import Log
from zoedge.recipe.reading import read_recipe
from zoedge.run import auto, setup, visits
from zoedge.run.display import Quiet
from zoedge.run.folder import LOG_FILE
from zoedge.scoring.models.base import Base
from zoedge.scoring.tasks._examples import Examples


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory, llama: Path) -> Path:
    """A recipe of 20 steps of one row each over 500 rows; eight of them are for calibration."""
    folder, draw = tmp_path_factory.mktemp("many"), random.Random(3)
    rows = [
        {"text": " ".join(draw.choices(WORDS, k=draw.randint(3, 24))), "label": draw.choice(["negative", "positive"])}
        for _ in range(500)
    ]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    recipe = tiny_recipe(folder, llama, folder / "rows.jsonl")
    recipe.write_text(
        recipe.read_text()
        .replace("layers: last 2", "layers: last 1")
        .replace("steps: 24, batch: 4", "steps: 20, batch: 1")
        .replace("calibrate: 16", "calibrate: 8")
    )
    return recipe


def test_the_rows_of_every_reader_are_known(many: Path) -> None:
    plain = read_recipe(str(many))
    train = Examples(1, [[5, 6]] * 1000, labels=[0] * 1000)
    visited = visits.list_visited_rows(plain, train)
    steps = {i for step in range(visits.SEARCH_STEPS) for i in train.plan(1, plain.seed, step)}
    assert visited is not None and set(visited) == steps | set(range(8)) and len(steps) == visits.SEARCH_STEPS
    assert visits.list_visited_rows(plain, Examples(1, [[5]] * 100, labels=[0] * 100)) is None, "half of them or more"
    more = {
        "eval.closed_form=true": 128,
        "eval.curvature={rows: 300}": 300,
        "train.steps=300": 300,
    }
    for override, rows in more.items():
        found = visits.list_visited_rows(read_recipe(str(many), [override]), train)
        assert found is not None and rows <= len(found) <= rows + len(visited), override
    begins = read_recipe(str(many), ["space={name: lora, start: probe}"])
    assert visits.list_visited_rows(begins, train) is None, "a start reads 2,048 rows"
    per_row = Examples(3, [[5, 6]] * 3000, labels=[0] * 1000)
    sequences = visits.list_visited_sequences(plain, per_row)
    assert sequences is not None and sequences[:6] == [0, 1, 2, 3, 4, 5] and len(sequences) == 3 * len(visited)
    assert visits.SEARCH_STEPS >= auto.MIN_TRIAL_STEPS + auto.JUDGING_BATCHES, "a search stays within them"


def play(recipe: Any, folder: Path, until: int, ahead: str) -> tuple[bytes, int]:
    """Begin or continue a run. Return the log's bytes and how many sequences' lower layers were computed.

    ahead: of the training rows that are planned, which are computed before the first step: none, or all `backwards`.
    """
    measuring = setup.Measuring.build(recipe)
    folder.mkdir(exist_ok=True)
    setup.cache_trunk(measuring, folder, Quiet())
    cache = measuring.base.kept[id(measuring.texts.train)]
    if ahead == "backwards":
        for number in reversed(range(len(measuring.texts.train))):
            for _ in cache.fill([number]):
                pass
    path = folder / LOG_FILE
    with Log.resume(path) if path.exists() else setup.begin_run(measuring, folder) as log:
        for _ in engine.play(measuring.run(log), until):
            pass
        if until == recipe.train.steps:
            log.finish(digests.digest(measuring.space))
    return path.read_bytes(), sum(len(cache.blocks[i].numbers) for i in cache.file.whole)


def test_a_run_computes_what_it_reads_and_writes_the_same_log_whatever_came_first(many: Path, tmp_path: Path) -> None:
    recipe = read_recipe(str(many))
    wanted, read = play(recipe, tmp_path / "once", 20, "none")
    assert read < 110, "of 470 rows, 72 are planned, and 20 are read"
    log, computed = play(recipe, tmp_path / "backwards", 20, "backwards")
    assert log == wanted and computed == 470
    assert play(recipe, tmp_path / "again", 9, "none")[0] != wanted
    assert play(recipe, tmp_path / "again", 20, "backwards")[0] == wanted


def test_no_stage_of_a_run_reads_beyond_the_plan(many: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a search of eps and lr, a start beside it, calibration, looks and samples."""
    import zoedge

    sets: list[tuple[Any, Any]] = []
    real = Base.open_trunk

    def opened(self: Base, examples: Any, folder: Path, planned: Any = None) -> Any:
        if planned is not None:
            sets.append((self, set(planned)))
        return real(self, examples, folder, planned)

    monkeypatch.setattr(Base, "open_trunk", opened)
    monkeypatch.setattr(auto, "MAX_TRIALS", 3)
    more = ["rule.lr=auto", "eval.closed_form=true", "train.steps=12", "eval.every=5"]
    zoedge.finetune(str(many), *more, run_dir=tmp_path / "run")
    (base, planned) = sets[0]
    (cache,) = [c for c in base.kept.values() if len(c.examples) == 470]
    assert len(planned) < 235
    members = [set(block.numbers) <= planned for block in cache.blocks]
    assert {members[i] for i in cache.file.whole} == {True} and False in members

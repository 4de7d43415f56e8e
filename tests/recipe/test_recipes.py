"""Every shipped recipe trains on a two-layer model."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from zoedge.commands.finetune import train
from zoedge.core import digests, engine
from zoedge.core.parts import PART_FOLDERS, list_words
from zoedge.core.types import CLIPPED
from zoedge.log.log import Log
from zoedge.recipe.reading import list_shipped, read_recipe
from zoedge.recipe.recipe import part_name
from zoedge.run import folder, replay
from zoedge.run.display import make_display

ELSEWHERE = ("mezo-", "roberta-")  # test_mezo.py, test_masked.py
RECIPES = [path for path in list_shipped() if not path.stem.startswith(ELSEWHERE)]


def test_every_noise_estimator_and_rule_has_a_recipe() -> None:
    for kind in ("noise", "estimator", "rule"):
        named = {part_name(getattr(read_recipe(str(path)), kind)) for path in RECIPES}
        assert named == set(list_words(PART_FOLDERS[kind])), (
            f"a recipe a method: {set(list_words(PART_FOLDERS[kind])) - named}"
        )


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_trains_and_its_log_replays(path: Path, opt: Path, reviews: Path, tmp_path: Path) -> None:
    """Six steps; the base, the rows (and their words) and how often to look are all that is another than for the user."""
    words = ["task.prompt='{text} It was'", 'task.options={negative: " terrible", positive: " great"}']
    recipe = read_recipe(
        str(path),
        [
            f"model.source={opt}", f"data.train={reviews}", "data.valid={split: 10}",
            "data.test={split: 20}", "train.steps=6", "train.batch=4", "eval.every=3", "eval.calibrate=8", "log.hash_every=2",
            *(words if set(read_recipe(str(path)).task.options) != {"negative", "positive"} else []),
            *(["eval.curvature={every: 3, directions: 2, rows: 4}"] if read_recipe(str(path)).eval.curvature else []),
        ],
    )  # fmt: skip
    assert recipe.name == path.stem and path.read_text().startswith("# ")
    outcome = train(recipe, tmp_path / "run", make_display("quiet"))
    assert outcome.steps == 6 and outcome.after is not None
    assert (tmp_path / "run" / "adapter").is_dir() == ("peft" in recipe.output.export)
    with Log.open(tmp_path / "run" / folder.LOG_FILE) as log:
        assert all(math.isfinite(g) for record in log for g in record.g) and not any(r.flags & ~CLIPPED for r in log)
        run = replay.build_replay_run(log)
        start = digests.digest(run.space)
        for _ in engine.play(run, len(log)):
            pass
        end = digests.digest(run.space)
        assert log.state.end is not None and end.startswith(log.state.end)
        moved = any(g for record in log for g in record.g)
        assert (end != start) == moved

"""What moves in a quantised base: the kernels read the moved scales, the codes stay, clamping and clipping do as told."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.scores import score_six

from zoedge.commands import verify
from zoedge.commands.export import check, merged, peft
from zoedge.core import digests, engine, oracle
from zoedge.core.exact import bits16
from zoedge.core.types import CLIPPED, SKIPPED, Leaf, Record
from zoedge.errors import DataError, UsageError
from zoedge.log.log import Log
from zoedge.methods.estimators.two_sided import TwoSided
from zoedge.methods.noise.normal import Normal
from zoedge.methods.spaces.scales import Scales
from zoedge.recipe.reading import read_recipe
from zoedge.recipe.recipe import Recipe
from zoedge.recipe.sections import Model
from zoedge.run import folder as run_folder
from zoedge.run import setup
from zoedge.scoring.models.loading import load_base
from zoedge.scoring.models.quantised import dequantise_weight

SCALES = ["space=scales", "rule.lr=1e-2", "train.steps=12"]
SCHEMES = {
    "nf4 double": ["model.quantization=nf4", "model.double_quant=true"],
    "nf4": ["model.quantization=nf4", "model.double_quant=false"],
    "fp4 double": ["model.quantization=fp4", "model.double_quant=true"],
    "fp4": ["model.quantization=fp4", "model.double_quant=false"],
    "int8": ["model.quantization=int8"],
}
Make = Callable[..., Recipe]


@pytest.fixture
def recipe(recipe_file: Path) -> Make:
    return lambda *overrides: read_recipe(str(recipe_file), [*SCALES, *overrides])


def shift(leaf: Leaf) -> torch.Tensor:
    """The first and the last scale or norm of everything much, all others a little."""
    delta = torch.linspace(-0.1, 0.2, len(leaf.value))
    delta[0], delta[-1] = 0.5, -0.5
    return delta


def stored(base: Any) -> dict[str, bytes]:
    """Every byte of the base: codes, scales, norms, tables."""
    found = {name: value for name, value in base.model.state_dict().items() if torch.is_tensor(value)}
    return {name: bytes(value.contiguous().view(torch.uint8).numpy()) for name, value in found.items()}


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("family", ["llama", "opt"])
def test_the_kernel_computes_with_the_moved_scales(
    recipe: Make, request: pytest.FixtureRequest, scheme: str, family: str
) -> None:
    """Against the same base in which every Linear is a plain one of (1 + u) W, block by block, and norms are w + v."""
    made = recipe(*SCHEMES[scheme], f"model.source={request.getfixturevalue(family)}")
    bench, other = setup.Measuring.build(made), load_base(made.model)
    before, here = stored(bench.base), score_six(bench, bench.base)
    moved = {p.name: (leaf, p) for leaf in bench.space.leaves() for p in leaf.parts}

    def of(name: str) -> torch.Tensor:
        leaf, part = moved[name]
        return shift(leaf)[part.offset - leaf.offset :][: math.prod(part.shape)]

    for name, shape in bench.space.changes().items():
        path, _, key = name.rpartition(".")
        module = other.model.get_submodule(path)
        if len(shape) == 1:
            getattr(module, key).data += of(name)
            continue
        weight = dequantise_weight(module)
        block = 64 if "4" in scheme else shape[1]
        shares = of(f"{path}.scales").repeat_interleave(block)[: weight.numel()]
        plain = torch.nn.Linear(shape[1], shape[0], bias=module.bias is not None)
        plain.weight.data = weight * (1 + shares.view(shape))
        if module.bias is not None:
            plain.bias = module.bias  # moved in its own turn, as the same parameter
        parent, _, last = path.rpartition(".")
        setattr(other.model.get_submodule(parent), last, plain)
    with bench.space.visit([shift]):
        found = score_six(bench, bench.base)
    assert torch.allclose(found, score_six(bench, other), rtol=0, atol=1e-5)  # measured: 1e-7 to 7e-7
    assert float((found - here).abs().max()) > 1e-2
    with bench.space.visit([lambda leaf: None]):
        assert torch.allclose(score_six(bench, bench.base), here, rtol=0, atol=1e-6)
    assert torch.equal(score_six(bench, bench.base), here) and stored(bench.base) == before


@pytest.mark.parametrize("scheme", ["nf4 double", "int8"])
def test_probing_leaves_no_trace_also_when_the_forward_raises(
    recipe: Make, scheme: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = setup.Measuring.build(recipe(*SCHEMES[scheme]))
    before, here, digest = stored(bench.base), score_six(bench, bench.base), digests.digest(bench.space)

    def fail(*args: Any, **options: Any) -> torch.Tensor:
        raise RuntimeError("out of memory")

    module = bench.base.blocks[1].mlp.down_proj
    with monkeypatch.context() as patch, pytest.raises(RuntimeError), bench.space.visit([shift]):
        patch.setattr(module, "forward", fail)
        score_six(bench, bench.base)
    assert stored(bench.base) == before and digests.digest(bench.space) == digest
    assert torch.equal(score_six(bench, bench.base), here)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_train_resume_and_replay_end_in_the_same_bits(recipe: Make, tmp_path: Path, scheme: str) -> None:
    """Replay has no base: what is trained starts from 0."""
    made = recipe(*SCHEMES[scheme], "rule.weight_decay=0.1", "noise=normal")

    def played(folder: Path, *stops: int) -> tuple[bytes, bytes]:
        for until in stops:
            bench, path = setup.Measuring.build(made), folder / run_folder.LOG_FILE
            folder.mkdir(exist_ok=True)
            with Log.resume(path) if path.exists() else setup.begin_run(bench, folder) as log:
                for _ in engine.play(bench.run(log), until):
                    pass
                if until == made.train.steps:
                    log.finish(digests.digest(bench.space))
        return digests.digest(bench.space), path.read_bytes()

    whole = played(tmp_path / "a", 12)
    assert played(tmp_path / "b", 5, 12) == whole
    log = Log.open(tmp_path / "a" / run_folder.LOG_FILE)
    run, _ = verify.check_states(log)
    assert digests.digest(run.space) == whole[0] and any(bool(leaf.value.any()) for leaf in run.space.leaves())
    assert verify.find_difference(log) == "torch and numpy agree here at every step."


def test_layers_bound_what_moves(recipe: Make, tmp_path: Path) -> None:
    """Norms are those of the chosen blocks and the last one; below, the trunk is computed once."""
    bench = setup.Measuring.build(recipe("space.layers=last 1"))
    scales, vectors = bench.space.leaves()
    assert len(scales.parts) == 7 and all(p.name.startswith("model.layers.2.") for p in scales.parts)
    assert [p.name for p in vectors.parts] == [
        "model.layers.2.input_layernorm.weight", "model.layers.2.post_attention_layernorm.weight", "model.norm.weight",
    ]  # fmt: skip
    with bench.space.visit([shift]):
        plain = score_six(bench, bench.base)
        assert bench.base.cut == 2 and sum(bench.base.cache_trunk(bench.texts.train, tmp_path)) == len(
            bench.texts.train
        )
        assert torch.equal(score_six(bench, bench.base), plain)
    alone = setup.Measuring.build(recipe("space={name: scales, vectors: false}"))
    assert [leaf.name for leaf in alone.space.leaves()] == ["scales"]


def test_a_scale_stops_at_zero_and_a_norm_does_not(recipe: Make) -> None:
    bench = setup.Measuring.build(recipe())
    scales, vectors = bench.space.leaves()
    for leaf in (scales, vectors):
        delta = torch.zeros(len(leaf.value))
        delta[0], delta[1] = -3.0, 0.25
        bench.space.add(leaf, delta, 1.0)
    assert scales.value[:3].tolist() == [-1.0, 0.25, 0.0] and vectors.value[:3].tolist() == [-3.0, 0.25, 0.0]
    with bench.space.visit([lambda leaf: torch.full_like(leaf.value, -2.0)]):
        assert all(bool((bench.space._point[p.name] == -1).all()) for p in scales.parts)
    bench.space.add(scales, torch.ones(len(scales.value)), 0.5)
    assert scales.value[0].item() == 0.5, "one that has reached zero comes back"


def test_a_weight_beyond_clip_is_cut_and_the_record_says_so(recipe: Make, tmp_path: Path) -> None:
    def records(*overrides: str) -> list[Record]:
        bench = setup.Measuring.build(recipe("estimator.queries=2", "train.steps=6", "rule.lr=1e-9", *overrides))
        with setup.begin_run(bench, tmp_path / str(len(overrides))) as log:
            return list(engine.play(bench.run(log), 6))

    (tmp_path / "0").mkdir(), (tmp_path / "1").mkdir()
    free = records()
    sizes = sorted(abs(g) for record in free for g in record.g)
    below, above = max(pairwise(sizes[6:]), key=lambda pair: pair[1] / pair[0])  # of twelve, at most five are over
    limit = bits16((below + above) / 2)
    assert below * 1.01 < limit < above / 1.01, "on either side of the limit by more than rounding"
    cut = records(f"estimator.clip={2 * limit}")  # of the slope; g is half of it, of two queries
    assert not any(record.flags for record in free)
    assert all(abs(g) <= limit for record in cut for g in record.g)
    for record, other in zip(free, cut):
        over = [abs(g) > limit for g in record.g]
        assert bool(other.flags & CLIPPED) == any(over)
        for g, h, beyond in zip(record.g, other.g, over):
            assert h == pytest.approx(math.copysign(limit, g) if beyond else g, abs=1e-3 * limit)
    assert {bool(r.flags & CLIPPED) for r in Log.open(tmp_path / "1" / run_folder.LOG_FILE)} == {True, False}


def test_a_loss_that_is_not_finite_is_skipped_not_clipped() -> None:
    class Two:
        step, lr, flags = 0, 1.0, 0
        clip = oracle.StepOracle.clip

        def losses(self, points: Any) -> list[float]:
            return [math.inf, 0.0]

    (g,) = TwoSided(clip=1.0).measure(Two(), [])  # type: ignore[arg-type]
    assert g == math.inf and Two.flags == 0 and SKIPPED != CLIPPED


def test_a_base_that_is_not_quantised_is_refused_with_what_to_write(recipe: Make, llama: Path) -> None:
    with pytest.raises(
        UsageError, match=r"space: scales goes only with model.quantization: nf4 or fp4 or int8, not none"
    ):
        recipe("model.quantization=none")
    with pytest.raises(UsageError, match=r"output.export: space scales has no adapter.* - write \[merged\]"):
        recipe("output.export=[peft, merged]")
    base = load_base(Model(source=str(llama), quantization="none"))
    with pytest.raises(DataError, match=r"model\.quantization: nf4"):
        Scales().attach(base, 0, Normal())


def test_descriptions_of_something_else_are_refused(recipe: Make) -> None:
    bench = setup.Measuring.build(recipe())
    good = json.loads(json.dumps(bench.space.describe()))
    assert Scales().elements(good) == len(bench.space.value)
    for bad in (
        None,
        {},
        {**good, "scales": [["a", 2, 3, 0]]},
        {**good, "vectors": [["a", -1]]},
        {"scales": [["a", "b"]]},
    ):
        assert Scales().elements(bad) == -1


@pytest.mark.parametrize("scheme", ["nf4 double", "int8"])
def test_the_export_is_the_trained_model(recipe: Make, tmp_path: Path, scheme: str, opt: Path) -> None:
    from transformers import AutoModelForCausalLM

    bench = setup.Measuring.build(recipe(*SCHEMES[scheme], f"model.source={opt}"))
    with setup.begin_run(bench, tmp_path) as log:
        for leaf in bench.space.leaves():
            bench.space.add(leaf, shift(leaf), 1.0)
        made = merged.write_merged(bench.recipe, bench.space, tmp_path / "merged", "fp32", log=log)
        assert made.least[1] > 0.9999 and len(made.kept) == len(bench.space.changes())
        assert check.check_export("merged", tmp_path / "merged", bench) < 2e-5
        with pytest.raises(UsageError, match=r"'scales' has no adapter.*--to merged"):
            peft.write_peft(bench.run(log), log, bench.recipe, tmp_path / "adapter")
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "merged").dtype == torch.float32


def test_a_model_that_fills_masks_moves_what_its_blocks_have(recipe_file: Path, roberta: Path, tmp_path: Path) -> None:
    """Not the embeddings' norm, which the kept trunk has seen, nor the head's own bias."""
    task = "task={name: mlm, prompt: '{text} It was{mask}.', options: {negative: ' terrible', positive: ' great'}}"
    overrides = [f"model.source={roberta}", task, "space={name: scales, layers: last 1}", "output.export=[]"]
    bench = setup.Measuring.build(read_recipe(str(recipe_file), [*overrides, "train.steps=6"]))
    names = [name for name, _ in bench.space.describe()["vectors"]]
    assert any("layer.1." in name for name in names) and any("lm_head" in name for name in names)
    assert not any("embeddings" in name or "layer.0." in name or name == "lm_head.bias" for name in names)
    with setup.begin_run(bench, tmp_path) as log:
        for _ in engine.play(bench.run(log), 6):
            pass
        log.finish(digests.digest(bench.space))
    assert "agree" in verify.check_states(Log.open(tmp_path / run_folder.LOG_FILE))[1][0]

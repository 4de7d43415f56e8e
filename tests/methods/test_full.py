"""All weights: probing changes nothing, what is probed is what moves, replay needs the base and no forward."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.scores import score_six
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

from zoedge.cli import app
from zoedge.commands import verify
from zoedge.commands.export import check, merged, peft
from zoedge.core import digests, engine
from zoedge.core.exact import HALF_FORMATS, round_stochastic
from zoedge.core.types import ROUNDING_STREAM, Key, Leaf
from zoedge.errors import DataError, IdentityError, UsageError
from zoedge.log.log import Log
from zoedge.methods.noise._uniform import TABLE_PERIOD, draw_rounding_bits
from zoedge.methods.noise.normal import Normal
from zoedge.methods.spaces import full
from zoedge.methods.spaces.full import Full
from zoedge.recipe.reading import read_recipe
from zoedge.recipe.recipe import Recipe
from zoedge.recipe.sections import Model
from zoedge.run import folder as run_folder
from zoedge.run import replay, setup
from zoedge.scoring.models.loading import load_base

FULL = ["model.quantization=none", "space=full", "output.export=[]", "rule.lr=1e-4", "train.steps=12"]
Make = Callable[..., Recipe]


@pytest.fixture
def recipe(recipe_file: Path) -> Make:
    return lambda *overrides: read_recipe(str(recipe_file), [*FULL, *overrides])


def deltas(size: float) -> Callable[[Leaf], torch.Tensor]:
    return lambda leaf: Normal().draw(Key(3, 0, 0), leaf) * size


def played(bench: setup.Measuring, folder: Path, until: int | None = None) -> tuple[bytes, bytes]:
    """(state digest, the log's bytes) of a run in `folder`, begun or continued."""
    folder.mkdir(exist_ok=True)
    path, steps = folder / run_folder.LOG_FILE, bench.recipe.train.steps
    with Log.resume(path) if path.exists() else setup.begin_run(bench, folder) as log:
        for _ in engine.play(bench.run(log), until or steps):
            pass
        if len(log) == steps:
            log.finish(digests.digest(bench.space))
    return digests.digest(bench.space), path.read_bytes()


# -- probing


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_probing_leaves_every_stored_bit(recipe: Make, dtype: str, opt: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also when the forward raises between a module's borrowing and its giving back."""
    bench = setup.Measuring.build(recipe(f"model.compute_dtype={dtype}", f"model.source={opt}"))
    model, before = bench.base.model, digests.digest(bench.space)
    owners = {id(p): (p, p.data_ptr()) for p in model.parameters()}
    here = score_six(bench, bench.base)
    with bench.space.visit([deltas(0.05)]):
        assert not torch.equal(score_six(bench, bench.base), here)
    linear = type(model.model.decoder.layers[1].fc2)

    def fail(self: Any, x: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("out of memory")

    with monkeypatch.context() as patch, pytest.raises(RuntimeError), bench.space.visit([deltas(0.05)]):
        patch.setattr(linear, "forward", fail)
        score_six(bench, bench.base)
    assert digests.digest(bench.space) == before
    assert {id(p): (p, p.data_ptr()) for p in model.parameters()} == owners
    assert torch.equal(score_six(bench, bench.base), here)


@torch.inference_mode()
def own(base: Any) -> torch.Tensor:
    """transformers' own logits, by which text is generated."""
    return base.model(input_ids=torch.tensor([[40, 50, 60]])).logits.clone()


@pytest.mark.parametrize("family", ["llama", "opt", "opt_350m", "qwen2", "qwen3", "gemma", "gpt_neox", "roberta"])
@pytest.mark.parametrize(("dtype", "close"), [("fp32", 1e-6), ("bf16", 0.0)])
def test_a_point_is_a_copied_model_with_w_plus_cz(
    recipe: Make, families: dict[str, Path], roberta: Path, family: str, dtype: str, close: float
) -> None:
    """Options of one token and of several (the whole vocabulary); bf16: the copy is rounded to bf16 as the scratch is."""
    source = {**families, "roberta": roberta}[family]
    mlm = "task={name: mlm, prompt: '{text} It was{mask}.', options: {negative: ' terrible', positive: ' great'}}"
    task = [mlm] if family == "roberta" else []
    made = recipe(f"model.source={source}", f"model.compute_dtype={dtype}", *task)
    bench, other = setup.Measuring.build(made), load_base(made.model)
    parameters = other.named_weights()
    for leaf in bench.space.leaves():
        (part,) = leaf.parts
        name, _, rows = part.name.partition("[")
        start = int(rows.split(":")[0]) if rows else 0
        piece = parameters[name].data[start : start + part.shape[0]]
        piece.copy_(piece.float() + deltas(0.02)(leaf).view(part.shape))
    with bench.space.visit([deltas(0.02)]):
        found, h = score_six(bench, bench.base), torch.randn(5, bench.base.facts.head(bench.base.model).in_features)
        words = bench.base.log_likelihood(h, torch.arange(5))
        said = own(bench.base)
    if family != "roberta" and dtype == "fp32":
        assert torch.allclose(said, own(other), rtol=0, atol=1e-5)
        assert not torch.allclose(said, own(bench.base), rtol=0, atol=1e-2)
    assert torch.allclose(found, score_six(bench, other), rtol=0, atol=close)
    assert torch.allclose(words, other.log_likelihood(h, torch.arange(5)), rtol=0, atol=close)
    assert not torch.allclose(found, score_six(bench, bench.base), rtol=0, atol=1e-3)


@pytest.mark.parametrize("noise", ["rademacher", "low_rank", "block"])
def test_the_direction_moved_is_the_direction_probed(recipe: Make, noise: str, monkeypatch: pytest.MonkeyPatch) -> None:
    bench = setup.Measuring.build(recipe(f"noise={noise}", "estimator.eps=0.0078125"))
    probed: dict[str, torch.Tensor] = {}
    visit, add, moved = bench.space.visit, bench.space.add, {}

    def seen(points: Any) -> Any:
        probed.update({leaf.name: d for leaf in bench.space.leaves() if (d := points[0](leaf)) is not None})
        return visit(points)

    monkeypatch.setattr(bench.space, "visit", seen)
    monkeypatch.setattr(bench.space, "add", lambda leaf, d, decay: (moved.update({leaf.name: d}), add(leaf, d, decay)))
    run = bench.run([])  # type: ignore[arg-type]
    run.log = type("Empty", (list,), {"next_seq": 5})()
    record = engine.measure(run, 0)
    engine.advance(run, record)
    gain = run.noise.gain(1, lambda: 1.0)
    assert probed.keys() == moved.keys() and len(moved) >= 3
    for name, delta in moved.items():
        expected = probed[name] * (record.coefficients[0] / (0.0078125 * gain))
        assert torch.allclose(delta, expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize("family", ["llama", "opt", "opt_350m", "gpt_neox", "gemma", "roberta"])
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_two_points_together_are_two_points_alone(
    recipe: Make, families: dict[str, Path], roberta: Path, family: str, dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each with its own weights, norms, biases, positions and head, in pieces; one that rests too."""
    monkeypatch.setattr(full, "LEAF_ELEMENTS", 1000)
    mlm = "task={name: mlm, prompt: '{text} It was{mask}.', options: {negative: ' terrible', positive: ' great'}}"
    task = [mlm] if family == "roberta" else []
    source = {**families, "roberta": roberta}[family]
    bench = setup.Measuring.build(recipe(f"model.source={source}", f"model.compute_dtype={dtype}", *task))
    batch, h = bench.texts.train.collate(range(6)), torch.randn(4, bench.base.facts.head(bench.base.model).in_features)
    assert len(bench.space.leaves()) > 60
    for some in ([deltas(0.02), deltas(-0.02)], [deltas(0.02), lambda leaf: None]):
        alone = []
        for one in some:
            with bench.space.visit([one]):
                words = bench.base.log_likelihood(h[2 * len(alone) :][:2], torch.arange(2))
                alone.append((bench.task.score(bench.base, batch, 1)[0], words))
        with bench.space.visit(some):
            together, words = bench.task.score(bench.base, batch, 2), bench.base.log_likelihood(h, torch.arange(4) % 2)
        for i in (0, 1):  # not equal: with two threads a product of another shape may be summed in another order
            assert torch.allclose(together[i], alone[i][0], rtol=1e-5, atol=1e-6)
        assert torch.allclose(words, torch.cat([alone[0][1], alone[1][1]]), rtol=0, atol=1e-5)
        assert (together[0] - together[1]).abs().max() > 1e-3


@pytest.mark.parametrize("family", ["llama", "opt", "gpt_neox"])
def test_two_points_answer_together_as_alone(recipe: Make, families: dict[str, Path], family: str) -> None:
    base = (bench := setup.Measuring.build(recipe(f"model.source={families[family]}"))).base
    some, prompts, alone = [deltas(0.1), deltas(-0.1)], [[40, 50, 60, 70], [90]], []
    with bench.space.visit(some):
        together = base.generate_answers(prompts, 2, 6)
    for one in some:
        with bench.space.visit([one]):
            alone.append([base.generate_answers([prompt], 1, 6)[0][0] for prompt in prompts])
    assert together == alone and alone[0] != alone[1]


def test_of_a_table_only_the_slabs_that_are_read_are_drawn(recipe: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(full, "LEAF_ELEMENTS", 64 * 128)
    bench, asked = setup.Measuring.build(recipe()), []
    slabs = [leaf for leaf in bench.space.leaves() if "embed_tokens" in leaf.name]
    assert len(slabs) == 3 and max(len(leaf.value) for leaf in slabs) == 64 * 128

    def delta(leaf: Leaf) -> torch.Tensor:
        asked.append(leaf)
        return deltas(0.01)(leaf)

    table = bench.base.model.get_input_embeddings()
    with bench.space.visit([delta]):
        table(torch.tensor([[130, 131], [255, 130]]))
    assert asked == [slabs[1]]


def test_nothing_as_large_as_the_model_is_kept(recipe: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(full, "LEAF_ELEMENTS", 1000)
    bench = setup.Measuring.build(recipe())
    with setup.begin_run(bench, tmp_path) as log:
        run = bench.run(log)
        next(engine.play(run, 1))
    assert sum(len(d.z) for d in run._drawn.values()) <= 1000
    assert bench.space._scratch.numel() == 2 * bench.space.largest == 2 * 64 * 128
    shapes = [p.shape for p in bench.base.model.model.layers.parameters()]
    assert bench.space.largest == max(s.numel() for s in shapes)


# -- what is trained


def test_tied_weights_are_one_tensor(recipe: Make, llama: Path) -> None:
    bench = setup.Measuring.build(recipe())
    plain = AutoModelForCausalLM.from_pretrained(llama)
    assert plain.lm_head.weight is plain.model.embed_tokens.weight
    assert sum(len(leaf.value) for leaf in bench.space.leaves()) == sum(p.numel() for p in plain.parameters())
    names = [name for name, _ in bench.space.tensors()]
    assert "lm_head.weight" not in names and "model.norm.weight" in names and names[0] == "model.embed_tokens.weight"
    offsets = [(leaf.offset, len(leaf.value)) for leaf in bench.space.leaves()]
    assert all(a + n == b for (a, n), (b, _) in itertools.pairwise(offsets)), "the leaves are the vector, without a gap"
    assert bench.recipe.space.elements(json.loads(json.dumps(bench.space.describe()))) == sum(n for _, n in offsets)


def test_descriptions_of_something_else_are_refused() -> None:
    good = {"storage": "float32", "shapes": [["a", 3, 2], ["b", 4]]}
    assert Full().elements(good) == 10
    for bad in (
        None,
        {},
        {**good, "storage": "int8"},
        {**good, "shapes": [["a", -1]]},
        {**good, "shapes": [["a", "b"]]},
    ):
        assert Full().elements(bad) == -1


def test_a_quantised_base_is_refused_with_what_to_write(recipe: Make, llama: Path) -> None:
    with pytest.raises(UsageError, match=r"space: full goes only with model.quantization: none, not nf4"):
        recipe("model.quantization=nf4")
    with pytest.raises(UsageError, match=r"output.export: space full has no adapter.* - write \[merged\]"):
        recipe("output.export=[peft]")
    base = load_base(Model(source=str(llama), quantization="nf4"))
    with pytest.raises(DataError, match=r"model\.quantization: none"):
        Full().attach(base, 0, Normal())


# -- one loop


@pytest.mark.parametrize(
    "options",
    [
        ("model.compute_dtype=fp32",),
        ("model.compute_dtype=bf16", "rule.weight_decay=0.1"),
        ("model.compute_dtype=fp16", "noise=normal"),
        ("model.compute_dtype=bf16", "noise=low_rank", "rule={name: momentum, lr: 1e-4}"),
    ],
)
def test_train_resume_and_replay_end_in_the_same_weights(
    recipe: Make, tmp_path: Path, options: tuple[str, ...]
) -> None:
    made = recipe(*options)
    first = setup.Measuring.build(made)
    start = digests.digest(first.space)
    whole = played(first, tmp_path / "a")
    assert whole[0] != start
    played(setup.Measuring.build(made), tmp_path / "b", 5)
    assert played(setup.Measuring.build(made), tmp_path / "b") == whole
    log = Log.open(tmp_path / "a" / run_folder.LOG_FILE)
    run, said = verify.check_states(log)
    assert run.task is None and run.model is None
    assert digests.digest(run.space) == whole[0] and "agree" in said[0]
    for (name, ours), (other, theirs) in zip(run.space.tensors(), first.space.tensors()):  # type: ignore[attr-defined]
        assert name == other and ours.dtype == theirs.dtype and torch.equal(ours, theirs)
    assert verify.find_difference(log) == "torch and numpy agree here at every step."


def test_storage_is_the_logs_wherever_auto_would_lead(recipe: Make, tmp_path: Path) -> None:
    """A run of bf16 by `auto` (a GPU's) replays as bf16 on a CPU, where `auto` is fp32."""
    bench = setup.Measuring.build(recipe("model.compute_dtype=bf16"))
    bench.recipe = recipe()
    final, _ = played(bench, tmp_path / "run")
    run, _ = verify.check_states(Log.open(tmp_path / "run" / run_folder.LOG_FILE))
    assert digests.digest(run.space) == final and run.space.storage == "bfloat16"  # type: ignore[attr-defined]


def test_replay_takes_the_base_that_is_named_and_no_other(recipe: Make, tmp_path: Path, llama: Path, opt: Path) -> None:
    import shutil

    own = shutil.copytree(llama, tmp_path / "own")
    bench = setup.Measuring.build(recipe(f"model.source={own}", "train.steps=2"))
    final, _ = played(bench, tmp_path / "run")
    log = Log.open(tmp_path / "run" / run_folder.LOG_FILE)
    shutil.rmtree(own)
    with pytest.raises(DataError, match="own"):
        replay.build_replay_run(log)
    with pytest.raises(IdentityError, match=r"not the one that was trained on.*--base"):
        replay.build_replay_run(log, base=str(opt))
    run, _ = verify.check_states(log, base=str(llama))
    assert digests.digest(run.space) == final
    done = CliRunner().invoke(
        app, ["replay", str(tmp_path / "run"), "--base", str(llama), "-o", str(tmp_path / "rebuilt")]
    )
    assert done.exit_code == 0 and "model " in done.output, done.output
    rebuilt = AutoModelForCausalLM.from_pretrained(tmp_path / "rebuilt")
    named = dict(rebuilt.named_parameters())
    assert all(torch.equal(named[name], value) for name, value in bench.space.tensors())


# -- stochastic rounding


@pytest.mark.parametrize("storage", HALF_FORMATS)
def test_rounding_is_unbiased(storage: str) -> None:
    """Numbers of every size, of both signs, subnormal ones too: 2**16 draws each, mean within 5 standard errors."""
    kind, draws = getattr(torch, storage), 1 << 16
    rng = np.random.default_rng(0)
    least = 2.0**-24 if storage == "float16" else 2.0**-100
    sizes = least * 2.0 ** rng.uniform(-3, 30, 24)
    for x in (rng.choice([-1, 1], 24) * sizes).astype("f4"):
        bits = torch.arange(draws, dtype=torch.int32)  # every number of 16 bits once: the mean is exact
        found = round_stochastic(torch.full((draws,), float(x)), bits, storage)
        assert torch.equal(found, found.to(kind).float()), "on the grid"
        low, high = found.min().item(), found.max().item()
        assert low <= float(x) <= high
        assert torch.nextafter(torch.tensor(low).to(kind), torch.tensor(torch.inf, dtype=kind)).float() >= high
        assert abs(found.double().mean().item() - float(x)) <= (high - low) * 2.0**-13
        random = round_stochastic(
            torch.full((draws,), float(x)),
            draw_rounding_bits(Key(1, 2, 0, ROUNDING_STREAM), Leaf("", 0, found)),
            storage,
        )
        assert abs(random.double().mean().item() - float(x)) <= 5 * (high - low) * 0.5 / draws**0.5


def test_numbers_on_the_grid_stay() -> None:
    bits = torch.full((5,), 65535, dtype=torch.int32)
    for storage in HALF_FORMATS:
        values = torch.tensor([0.0, -0.0, 1.0, -0.15625, 2.0**-14])
        assert torch.equal(round_stochastic(values, bits, storage), values)


def test_its_bits_are_a_function_of_key_and_place() -> None:
    key, n, first = Key(5, 9, 0, ROUNDING_STREAM), 3000, TABLE_PERIOD - 1500
    whole = draw_rounding_bits(key, Leaf("", first, torch.zeros(n)))
    assert whole.dtype == torch.int32 and int(whole.min()) >= 0 and int(whole.max()) < 65536
    assert abs(whole.double().mean().item() / 65535 - 0.5) < 5 / (12 * n) ** 0.5
    for start, stop in ((0, 1), (1, 9), (9, 1000), (1000, n)):
        piece = draw_rounding_bits(key, Leaf("", first + start, torch.zeros(stop - start, dtype=torch.bfloat16)))
        assert torch.equal(piece, whole[start:stop])
        assert (draw_rounding_bits(key, Leaf("", first + start, np.zeros(stop - start, "f4"))) == piece.numpy()).all()
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    assert torch.equal(draw_rounding_bits(key, Leaf("", first, torch.zeros(n))), whole)
    torch.set_num_threads(threads)
    others = [key._replace(**{field: 1}) for field in ("seed", "seq", "query", "stream")]
    far = [draw_rounding_bits(key, Leaf("", first + i * TABLE_PERIOD, torch.zeros(n))) for i in (1, 2, 70)]
    assert not any(torch.equal(some, whole) for some in far)
    assert not any(torch.equal(draw_rounding_bits(other, Leaf("", first, torch.zeros(n))), whole) for other in others)
    x = Normal().draw(Key(1, 1, 1), Leaf("", 0, torch.zeros(n))) * 1e-5
    for storage in HALF_FORMATS:
        ours = round_stochastic(x, whole, storage)
        assert round_stochastic(x.numpy(), whole.numpy(), storage).tobytes() == ours.numpy().tobytes()


def test_small_updates_arrive_that_nearest_rounding_would_eat(recipe: Make, tmp_path: Path) -> None:
    """Measured: 0.998 of the update arrives, 0.996 by the samples of 4,096 elements a leaf; to nearest, 0.07."""
    bench = setup.Measuring.build(recipe("model.compute_dtype=bf16", "estimator=one_sided"))
    leaves, key = bench.space.leaves(), Key(1, 0, 0, ROUNDING_STREAM)
    before = torch.cat([leaf.value.float() for leaf in leaves])
    for seq in range(20):
        for leaf in leaves:
            step = key._replace(seq=seq)
            bench.space.add(leaf, deltas(1e-5)(leaf), 1.0, lambda piece: draw_rounding_bits(step, piece))
    moved = torch.cat([leaf.value.float() for leaf in leaves]) - before
    wanted = torch.cat([deltas(2e-4)(leaf) for leaf in leaves])
    share = float((moved * wanted).sum() / (wanted * wanted).sum())
    applied, nearest, intended = bench.space.kept
    assert 0.9 < share < 1.1 and 0.9 < applied / intended < 1.1 and nearest / intended < 0.5


# -- export


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_the_export_is_the_trained_model(recipe: Make, tmp_path: Path, dtype: str) -> None:
    bench = setup.Measuring.build(recipe(f"model.compute_dtype={dtype}"))
    played(bench, tmp_path / "run")
    log = Log.open(tmp_path / "run" / run_folder.LOG_FILE)
    made = merged.write_merged(bench.recipe, bench.space, tmp_path / "merged", log=log)
    assert made.dtype == dtype and made.least[1] > 0.999999, "nothing is lost in the type that is stored"
    named = dict(AutoModelForCausalLM.from_pretrained(tmp_path / "merged").named_parameters())
    assert named.keys() == dict(bench.space.tensors()).keys()
    assert all(torch.equal(named[name], value) for name, value in bench.space.tensors())
    if dtype == "fp32":
        assert check.check_export("merged", tmp_path / "merged", bench) < 1e-5
    with pytest.raises(UsageError, match=r"'full' has no adapter.*--to merged"):
        peft.write_peft(bench.run(log), log, bench.recipe, tmp_path / "adapter")


def test_a_bf16_run_says_what_arrived(recipe: Make, tmp_path: Path) -> None:
    from zoedge.commands.finetune import train
    from zoedge.run.display import make_display

    train(recipe("model.compute_dtype=bf16"), tmp_path / "run", make_display("quiet"))
    (said,) = [line for line in run_folder.read_metrics(tmp_path / "run") if line["event"] == "rounding"]
    assert said["storage"] == "bfloat16" and 0.5 < said["applied"] < 1.5 and said["nearest"] < said["applied"]

"""`space: aligned` in whole runs: its basis is computed once, without labels, and the log alone gives it again."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from helpers.commands import Done
from helpers.models import WORDS
from helpers.runs import replay_to
from helpers.scores import CLOSE, far, give_basis, plain_logits

from zoedge.commands.finetune import finetune
from zoedge.core.canonical import encode_canonical
from zoedge.errors import DamagedError, DataError, IdentityError, UsageError
from zoedge.log.log import Log
from zoedge.methods.noise.rademacher import Rademacher
from zoedge.methods.spaces._basis import Basis
from zoedge.methods.spaces.aligned import BASIS_KEY, Aligned
from zoedge.recipe.reading import read_recipe
from zoedge.run import auto as run_auto
from zoedge.run import basis as run_basis
from zoedge.run import folder as run_folder
from zoedge.run import setup
from zoedge.run.display import make_display
from zoedge.run.replay import build_replay_run
from zoedge.run.start import compute_start
from zoedge.run.trained import load_trained

SPACE = "space={name: aligned, k: 4, layers: last 2}"
STEPS = ("train.steps=6", "eval.every=3", "eval.select=last", "log.hash_every=2")
ALIGNED = (SPACE, "estimator=two_sided", "rule=sgd", *STEPS)
MASKED = 'task={name: mlm, prompt: "{text} It was{mask}.", options: {negative: " terrible", positive: " great"}}'


def still(leaf: Any) -> None:
    return None


def noted(folder: Path, event: str) -> list[dict[str, Any]]:
    return [line for line in run_folder.read_metrics(folder) if line["event"] == event]


@pytest.fixture
def aligned(recipe_file: Path) -> Path:
    """The folder of a finished run."""
    outcome = finetune(str(recipe_file), *ALIGNED)
    assert outcome is not None
    return outcome.folder


# -- what is computed


@pytest.fixture(params=["llama", "opt", "opt_350m", "gemma", "gpt_neox", "roberta"])
def measuring(
    request: pytest.FixtureRequest, recipe_file: Path, families: dict[str, Path], roberta: Path, tmp_path: Path
) -> setup.Measuring:
    """A base of each family with its computed basis, not trained yet."""
    source = {**families, "roberta": roberta}[request.param]
    more = [MASKED] if request.param == "roberta" else []
    recipe = read_recipe(str(recipe_file), [*ALIGNED, f"model.source={source}", "model.quantization=none", *more])
    measuring = setup.Measuring.build(recipe)
    compute_start(measuring, tmp_path, make_display("quiet"))
    return measuring


def scored(measuring: setup.Measuring) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """What the modules read at the scored positions of all training rows, and the options' logits there."""
    examples, space = measuring.texts.train, measuring.space
    assert isinstance(space, run_basis.AlignedSpace)
    inputs, _ = run_basis.collect_inputs(measuring.base, examples, list(range(len(examples))), list(space.shapes))
    h = measuring.base.hidden_states(examples.collate(range(len(examples))), 1)
    return dict(inputs), measuring.base.logits(h[:, 0], torch.tensor(examples.targets[0]))


def test_untrained_it_is_the_base(measuring: setup.Measuring) -> None:
    examples = measuring.texts.train
    batch = examples.collate(range(8))
    bare = measuring.base.hidden_states(batch, 3)
    with measuring.space.visit([still] * 3):
        assert torch.equal(measuring.base.hidden_states(batch, 3), bare)
    with measuring.space.visit([lambda leaf: leaf.value + 0.1] * 3):
        assert far(measuring.base.hidden_states(batch, 3), bare) > 1e-3


def test_features_are_white_and_the_first_is_one(measuring: setup.Measuring) -> None:
    space: Any = measuring.space
    inputs, _ = scored(measuring)
    for name, a in space._basis.a.items():
        phi = inputs[name] @ a.T
        assert phi[:, 0].mean() == pytest.approx(1, abs=0.01), name
        assert torch.allclose(phi.square().mean(0)[1:], torch.ones(3), atol=0.03), name
        products = (phi.T @ phi / len(phi))[1:, 1:] - torch.eye(3)
        assert products.abs().max() < 0.03, name


def test_a_coefficient_moves_the_logits_by_itself(measuring: setup.Measuring) -> None:
    """On what the last block adds last, where the derivative that B is made of is exact."""
    space: Any = measuring.space
    size, k = 1e-2, space.options.k
    at = len(space.value) - k  # R of that module, whose first feature is 1 on average
    moved = []
    for sign in (size, -size):
        space.value.zero_()
        space.value[at] = sign
        with space.visit([still]):
            moved.append(scored(measuring)[1])
    change = ((moved[0] - moved[1]) / (2 * size)).double()
    change = (change - change.mean(-1, keepdim=True)).mean(0)
    # the derivative differs by example, and so does the feature: their product's mean is near one, not one
    assert change.norm() == pytest.approx(1, abs=0.15)


def test_labels_are_not_read(recipe_file: Path, reviews: Path, tmp_path: Path) -> None:
    rows = [json.loads(line) for line in reviews.read_text().splitlines()]
    found = []
    for which in (str, lambda label: "positive"):
        path = tmp_path / "rows.jsonl"
        path.write_text("".join(json.dumps({**row, "label": which(row["label"])}) + "\n" for row in rows))
        measuring = setup.Measuring.build(read_recipe(str(recipe_file), [*ALIGNED, f"data={{train: {path}}}"]))
        compute_start(measuring, tmp_path, make_display("quiet"))
        found.append(measuring.space.describe()[BASIS_KEY])
    assert found[0] == found[1]


def test_few_rows_give_fewer_features(recipe_file: Path, reviews: Path, tmp_path: Path) -> None:
    (tmp_path / "few.jsonl").write_text("\n".join(reviews.read_text().splitlines()[:3]) + "\n")
    recipe = read_recipe(str(recipe_file), [*ALIGNED, f"data={{train: {tmp_path / 'few.jsonl'}}}"])
    measuring = setup.Measuring.build(recipe)
    compute_start(measuring, tmp_path, make_display("quiet"))
    space: Any = measuring.space
    for a in space._basis.a.values():
        assert a[:3].abs().amax(1).min() > 0 and not a[3].any()


def test_a_basis_is_described_to_the_bit() -> None:
    random = torch.Generator().manual_seed(0)
    sizes = torch.tensor([1e-20, 1e-3, 1.0, 127.0, 0.0, 1e9])[:, None]
    a = {"m": torch.randn(6, 50, generator=random) * sizes, "n": torch.randn(6, 30, generator=random)}
    basis = Basis.of(a, torch.randn(20, 3, generator=random))
    shapes = {"m": (20, 50), "n": (20, 30)}
    again = Basis.read(json.loads(json.dumps(basis.describe())), shapes, 6, 3)
    for name, matrix in a.items():
        assert torch.equal(again.a[name], basis.a[name]) and torch.equal(
            basis.a[name].bfloat16().float(), basis.a[name]
        )
        error, largest = (basis.a[name] - matrix).abs().amax(1), matrix.abs().amax(1)
        assert bool((error <= largest / 126).all())
    assert torch.equal(again.b, basis.b) and Basis.of(again.a, again.b).describe() == basis.describe()


# -- runs


def test_a_run_learns_from_its_few_numbers(recipe_file: Path) -> None:
    outcome = finetune(str(recipe_file), *ALIGNED, "train.steps=200", "train.batch=16", "eval={every: 50}")
    assert outcome is not None and outcome.before is not None and outcome.after is not None
    assert outcome.after.loss < 0.8 * outcome.before.loss
    (line,) = noted(outcome.folder, "aligned")
    assert line["passes"] == 50 and line["elements"] == 2 * 2 * 4
    (beside,) = noted(outcome.folder, "closed_form")
    assert not beside["begins"] and beside["passes"] == 50


def test_the_log_alone_rebuilds_it(aligned: Path, zoedge: Callable[..., Done], tmp_path: Path, llama: Path) -> None:
    name = "adapter_model.safetensors"
    with Log.open(aligned / "run.zlog") as log:
        space: Any = replay_to(log)
        trained, *_ = load_trained(str(aligned))
        own: Any = trained.space
        assert torch.equal(own._basis.b, space._basis.b) and space._basis.b.any() and space.value.any()
        assert all(torch.equal(a, space._basis.a[name]) for name, a in own._basis.a.items())
        assert space.describe() == log.header.about["space"]
    done = zoedge("verify", aligned, "--replay", "--adapter", aligned / "adapter")
    assert done.code == 0 and "tensors equal the replayed ones" in done.out
    assert zoedge("verify", aligned, "--against", aligned / "recipe.yaml").code == 0
    assert zoedge("eval", aligned).code == 0
    assert zoedge("replay", aligned, "-o", tmp_path / "again").code == 0
    assert zoedge("pack", aligned, "-o", tmp_path / "run.zoe").code == 0
    assert zoedge("apply", tmp_path / "run.zoe", "--base", llama, "-o", tmp_path / "applied").code == 0
    for folder in ("again", "applied"):
        assert (tmp_path / folder / name).read_bytes() == (aligned / "adapter" / name).read_bytes()


def test_a_killed_run_goes_on_with_the_basis_in_its_log(
    recipe_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = finetune(str(recipe_file), *ALIGNED, run_dir=tmp_path / "whole")
    assert whole is not None
    path = tmp_path / "cut" / "run.zlog"
    path.parent.mkdir()
    with Log.open(whole.folder / "run.zlog") as log:
        keep, state = log.header.length + 5 * log.header.slot_size, log.state.end
    path.write_bytes((whole.folder / "run.zlog").read_bytes()[:keep])
    monkeypatch.setattr(run_basis, "collect_inputs", lambda *_: pytest.fail("computed again"))
    finetune(str(recipe_file), *ALIGNED, run_dir=path.parent)
    with Log.open(path) as log:
        assert log.state.end == state and log.size == whole.size


def test_peft_loads_it_as_plain_lora(aligned: Path) -> None:
    from peft import PeftModel

    trained, *_ = load_trained(str(aligned))
    config = json.loads((aligned / "adapter" / "adapter_config.json").read_text())
    assert config["r"] == config["lora_alpha"] == 4 and config["target_modules"] == ["down_proj", "o_proj"]
    words = trained.base.tokenizer(" ".join(WORDS[:12])).input_ids
    batch: Any = SimpleNamespace(
        ids=torch.tensor([words]),
        rows=torch.arange(len(words))[None],
        index=[0],
        branches=None,
        examples=SimpleNamespace(tokens=[words], whole=None),
    )
    columns = torch.arange(trained.base.model.config.vocab_size)
    with trained.space.visit([still]):
        ours = trained.base.logits(trained.base.hidden_states(batch, 1), columns)
    base = trained.base.logits(trained.base.hidden_states(batch, 1), columns)
    plain, *_ = load_trained(str(aligned))
    model = PeftModel.from_pretrained(plain.base.model, aligned / "adapter").eval()
    assert far(ours, plain_logits(model, batch)) < 3 * CLOSE < 1e-3 < far(ours, base)


@pytest.mark.parametrize(
    "kind", ["merged", *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("peft", "gguf-lora"))]
)
def test_every_export_is_read_back_as_trained(
    aligned: Path, zoedge: Callable[..., Done], tmp_path: Path, kind: str
) -> None:
    out = tmp_path / ("out.gguf" if kind == "gguf-lora" else "out")
    done = zoedge("export", aligned, "--to", kind, "--check", "-o", out)
    assert done.code == 0, done.err


def test_values_are_read_back_from_an_adapter(aligned: Path) -> None:
    trained, *_ = load_trained(str(aligned))
    space = trained.space
    values, tensors = space.leaves()[0].value.clone(), {name: t.clone() for name, t in space.tensors()}
    space.leaves()[0].value.zero_()
    space.load_tensors(tensors)
    assert values.any() and far(space.leaves()[0].value, values) < 1e-6


def test_columns_are_summed_in_one_order_whatever_the_machine() -> None:
    """lora_B is B R to the bit of the sum in float32, column by column."""
    name = "model.layers.0.mlp.down_proj"
    space = give_basis(Aligned(k=6, rank=5).blank({"shapes": [[name, 40, 24]]}, 0, Rademacher()))
    space.value.copy_(torch.randn(30, generator=torch.Generator().manual_seed(1)))
    tensors, b, r = dict(space.tensors()), space._basis.b.numpy(), space.value.view(5, 6).numpy()
    wanted = b[:, :1] * r[0]
    for column in range(1, 5):
        wanted = wanted + b[:, column, None] * r[column]
    assert (tensors[f"{name}.lora_B"].numpy() == wanted).all()
    merged, update = space.merged(f"{name}.weight", torch.ones(40, 24))
    assert torch.allclose(update.double(), torch.from_numpy(wanted).double() @ space._basis.a[name].double())
    assert torch.equal(merged, 1 + update)


@pytest.mark.parametrize(
    "change",
    [
        {"basis": "!"},
        {"basis": 3},
        {"basis": None},
        {"shapes": [["m", 64, 128], ["n", 32, 64]]},
        {"shapes": []},
        {"shapes": [["m", 64, -1]]},
        {"shapes": [["m", 64, True], ["m", 64, True]]},
        {"shapes": 3},
    ],
)
def test_a_basis_that_is_none_is_told(aligned: Path, tmp_path: Path, change: dict[str, Any]) -> None:
    with Log.open(aligned / "run.zlog") as log:
        about = dict(log.header.about)
        forged = replace(log.header, block=encode_canonical({**about, "space": {**about["space"], **change}}))
    with Log.create(tmp_path / "forged.zlog", forged) as log, pytest.raises(DamagedError):
        build_replay_run(log)


@pytest.mark.parametrize(
    ("at", "raw", "what"), [(0, b"\x7f", "scale"), (-2, b"\x80\x7f", "finite"), (-2, b"\xff\x7f", "finite")]
)
def test_values_that_no_basis_has_are_damage(at: int, raw: bytes, what: str) -> None:
    """A scale of 2^127; a value of B that is infinite, or no number."""
    shapes = {"m": (20, 8)}
    whole = bytearray(base64.b85decode(Basis.of({"m": torch.ones(3, 8)}, torch.ones(20, 1)).describe()))
    assert Basis.read(base64.b85encode(whole).decode(), shapes, 3, 1).b.all()
    whole[at : at + len(raw) or None] = raw
    with pytest.raises(ValueError, match=what):
        Basis.read(base64.b85encode(whole).decode(), shapes, 3, 1)


def test_another_basis_is_not_taken_for_the_logs_own(aligned: Path, tmp_path: Path) -> None:
    with Log.open(aligned / "run.zlog") as log:
        about = dict(log.header.about)
        shapes = {name: (out, wide) for name, out, wide in about["space"]["shapes"]}
        basis = Basis.read(about["space"][BASIS_KEY], shapes, 4, 1)
        other = {**about["space"], BASIS_KEY: Basis.of(basis.a, basis.b * 1.5).describe()}
        without = {key: value for key, value in about["space"].items() if key != BASIS_KEY}
        forged = [replace(log.header, block=encode_canonical({**about, "space": space})) for space in (other, without)]
    for i, header in enumerate(forged):
        with Log.create(tmp_path / f"{i}.zlog", header) as log, pytest.raises(IdentityError, match="initial values"):
            build_replay_run(log)


# -- what is known without a search


@pytest.mark.parametrize(("objective", "eps", "lr"), [("loss", 0.05, 3 / 16), ("accuracy", 1.0, 1.0)])
def test_eps_and_lr_are_known(recipe_file: Path, objective: str, eps: float, lr: float) -> None:
    recipe = read_recipe(str(recipe_file), [*ALIGNED, f"task.objective={objective}"])
    assert recipe.estimator.eps == eps and recipe.auto >= {"rule.lr"} and "estimator.eps" not in recipe.auto
    outcome = finetune(recipe)
    assert outcome is not None
    (line,) = noted(outcome.folder, "auto")
    assert line["key"] == "rule.lr" and line["passes"] == 0 and line["value"] == float(f"{lr:.2g}")
    with Log.open(outcome.folder / "run.zlog") as log:
        table = log.header.about["recipe"]
        assert table["rule"]["lr"] == line["value"] and table["estimator"]["eps"] == eps
    assert not (outcome.folder / "search").exists()


def test_what_is_written_is_kept_and_other_steps_are_searched(recipe_file: Path, tmp_path: Path) -> None:
    written = read_recipe(
        str(recipe_file), [SPACE, "estimator={name: two_sided, eps: 0.01}", "rule={name: sgd, lr: 1}"]
    )
    assert written.estimator.eps == 0.01 and written.rule.lr == 1 and not written.auto
    solved = read_recipe(str(recipe_file), [SPACE, "estimator=gauss_newton", "rule=sgd"])
    assert solved.estimator.eps == 0.05 and solved.rule.lr == 0.5 and not solved.auto
    outcome = finetune(str(recipe_file), SPACE, *STEPS, "estimator={name: fzoo, queries: 2}", "rule=sgd")
    assert outcome is not None and (outcome.folder / "search").exists()
    (line,) = noted(outcome.folder, "auto")
    assert line["passes"] > 0


def test_the_options_decide_the_rank(recipe_file: Path) -> None:
    six = 'task.options={a: " great", b: " dull", c: " fun", d: " bad", e: " good", f: " bright"}'
    recipe: Any = read_recipe(str(recipe_file), [SPACE, six])
    assert recipe.space.rank == 5 and ("space.rank", 5) in [item[:2] for item in recipe.derived]
    less: Any = read_recipe(str(recipe_file), [SPACE, six, "space.rank=2"])
    assert less.space.rank == 2
    with pytest.raises(UsageError, match=r"space\.rank: 2, where 2 options differ in 1 directions"):
        read_recipe(str(recipe_file), [SPACE, "space.rank=2"])


@pytest.mark.parametrize(
    ("method", "known"),
    [
        (["estimator=one_sided", "rule=sgd"], 3 / 16),
        (["estimator=residual", "rule=sgd"], None),
        (["estimator=two_sided", "rule=momentum"], None),
        (["estimator=fzoo", "rule=sgd"], None),
    ],
)
def test_the_known_rate_is_that_of_steps_down_a_slope(
    recipe_file: Path, method: list[str], known: float | None
) -> None:
    measuring = setup.Measuring.build(read_recipe(str(recipe_file), [SPACE, *method]))
    assert run_auto.known_learning_rate(measuring) == (known and float(f"{known:.2g}"))
    lora = setup.Measuring.build(read_recipe(str(recipe_file), method))
    assert run_auto.known_learning_rate(lora) is None


# -- what it does not go with


def test_tasks_without_options_are_refused(recipe_file: Path) -> None:
    with pytest.raises(UsageError, match=r"space: aligned moves the logits of options: .*classify and mlm, not lm"):
        read_recipe(str(recipe_file), [SPACE, "task=lm"])


def test_options_of_several_tokens_are_refused(recipe_file: Path) -> None:
    with pytest.raises(DataError, match=r"space: aligned .* one token each"):
        finetune(str(recipe_file), *ALIGNED, 'task.options={negative: " terrible", positive: " great fun"}')


def test_several_spaces_have_none(recipe_file: Path) -> None:
    with pytest.raises(UsageError, match=r"of\.aligned: .* goes with no other space"):
        read_recipe(str(recipe_file), ["space={name: several, of: {aligned: , prompt: {tokens: 2}}}"])


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ("targets: [q_proj]", r"space\.targets: 'q_proj' is none of what adds to .*: o_proj down_proj\. Choose"),
        ("targets: []", r"space\.targets: '' is none"),
        ("layers: last 9", r"space\.layers: 'last 9' is not all"),
        ("k: 3000", r"space\.k: 3000 features of 6 modules are [0-9,]+ bytes in the log's header"),
    ],
)
def test_what_a_model_does_not_have_is_told(recipe_file: Path, options: str, sentence: str) -> None:
    layers = "" if "layers" in options else "layers: all, "
    recipe = read_recipe(str(recipe_file), [f"space={{name: aligned, {layers}{options}}}"])
    with pytest.raises(DataError, match=sentence):
        setup.Measuring.build(recipe)


def test_chosen_modules_alone_are_adapted(recipe_file: Path, roberta: Path) -> None:
    built: Any = setup.Measuring.build(
        read_recipe(str(recipe_file), ["space={name: aligned, targets: [o_proj], layers: [1]}"])
    )
    assert list(built.space.shapes) == ["model.layers.1.self_attn.o_proj"] and built.base.cut == 1
    masked: Any = setup.Measuring.build(
        read_recipe(str(recipe_file), ["space={name: aligned, layers: last 1}", f"model.source={roberta}", MASKED])
    )
    assert [name.partition("layer.1.")[2] for name in masked.space.shapes] == ["attention.output.dense", "output.dense"]

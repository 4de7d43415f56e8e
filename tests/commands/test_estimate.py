"""What a run will need: exact where it is countable, larger for more, and said before anything is loaded."""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch

from zoedge import errors
from zoedge.commands import finetune
from zoedge.commands.estimate import facts as estimate_facts
from zoedge.commands.estimate import fit, machine, measure, time
from zoedge.commands.estimate import memory as estimate_memory
from zoedge.commands.estimate import work as estimate_work
from zoedge.core import engine
from zoedge.core.parts import list_words, load_part
from zoedge.core.types import Leaf
from zoedge.errors import DataError, UsageError
from zoedge.methods.spaces import full
from zoedge.recipe.reading import read_recipe
from zoedge.recipe.recipe import Recipe
from zoedge.recipe.sections import Model
from zoedge.run import evaluate, setup
from zoedge.run import folder as run_folder
from zoedge.run.display import make_display
from zoedge.scoring import drift
from zoedge.scoring.models import base, loading, quantised
from zoedge.scoring.sources import hub, packaged
from zoedge.scoring.tasks import _training

MASKED_TASK = "task={name: mlm, prompt: '{text} It was{mask}.', options: {negative: ' terrible', positive: ' great'}}"
SCHEMES = ["nf4", "fp4", "int8", "none"]


def case(recipe_file: Path, *overrides: str) -> fit.Plan:
    return fit.make_plan(read_recipe(str(recipe_file), list(overrides)))


def held(model: Any) -> tuple[int, int]:
    """(bytes of all but the tables, of the tables) of a loaded model, counted tensor by tensor."""
    tables = {id(t): t for t in (model.get_input_embeddings().weight, model.get_output_embeddings().weight)}
    rest = [p for p in model.parameters() if id(p) not in tables]
    found = sum(p.nbytes for p in rest)
    for p in rest:
        if (quant := getattr(p, "quant_state", None)) is not None:
            found += quant.absmax.nbytes + quant.code.nbytes
            if quant.nested:
                found += quant.state2.absmax.nbytes + quant.state2.code.nbytes + quant.offset.nbytes
    for module in model.modules():
        if (state := getattr(module, "state", None)) is not None:
            scale = module.weight.SCB if module.weight.SCB is not None else state.SCB
            found += scale.nbytes
    return found, sum(t.nbytes for t in tables.values())


# -- exact


def test_constants_are_those_of_their_owners() -> None:
    ours = estimate_facts
    assert (ours.HEAD_COLUMNS, ours.FORWARD_TOKENS, ours.PIECE_ELEMENTS, ours.KEPT_BYTES) == (
        base.HEAD_COLUMNS,
        _training.FORWARD_TOKENS,
        full.LEAF_ELEMENTS,
        quantised.KEPT_BYTES,
    )


@pytest.mark.parametrize(
    "scheme,double", [("nf4", True), ("nf4", False), ("fp4", True), ("int8", False), ("none", False)]
)
@pytest.mark.parametrize("family", ["llama", "opt", "llama_untied_half", "opt_350m", "qwen2", "gemma", "pythia"])
def test_weights_are_the_loaded_tensors_bytes(
    families: dict[str, Path], family: str, scheme: str, double: bool
) -> None:
    model = Model(source=str(families[family]), quantization=scheme, double_quant=double)  # type: ignore[arg-type]
    facts = estimate_facts.read_model_shape(model)
    work = work_like(facts, quantization=scheme, double_quant=double)
    loaded = loading.load_base(model).model
    assert estimate_memory.weight_bytes(facts, work) == held(loaded)


def work_like(facts: estimate_facts.ModelShape, **fields: Any) -> estimate_work.Workload:
    one = estimate_work.ForwardSize(1, 1, 1, 1)
    whole = dict(
        cuda=False, quantization="none", double_quant=True, compute_itemsize=4, is_source_type=True, trains_all=False,
        elements=1, slots=0, points=1, queries=1, passes=2, step=one, evaluation=None, trunk=None, full_blocks=1,
        tables_share=1.0, has_cached_weights=True, overhead=0, mean_tokens=1, trunk_tokens=0, trunk_disk=0, kept_weights=0,
    )  # fmt: skip
    return estimate_work.Workload(**(whole | fields))  # type: ignore[arg-type]


def test_a_masked_models_weights_too(roberta: Path) -> None:
    for scheme in ("nf4", "none"):
        model = Model(source=str(roberta), quantization=scheme)  # type: ignore[arg-type]
        facts = estimate_facts.read_model_shape(model)
        assert estimate_memory.weight_bytes(facts, work_like(facts, quantization=scheme)) == held(
            loading.load_base(model).model
        )


@pytest.mark.parametrize(
    "space,quantization",
    [
        ("{name: lora, rank: 4, layers: last 2}", "nf4"),
        ("{name: lora, train: b, targets: [q_proj]}", "none"),
        ("{name: prompt, tokens: 3}", "nf4"),
        ("{name: prefix, tokens: 3}", "nf4"),
        ("{name: scales}", "nf4"),
        ("{name: scales, layers: last 1}", "int8"),
        ("{name: several, of: {lora: {rank: 2}, prompt: {tokens: 2}}}", "nf4"),
        ("{name: full}", "none"),
    ],
)
def test_what_is_trained_is_what_is_attached(recipe_file: Path, space: str, quantization: str) -> None:
    """Elements, cut, width and rows of the longest batch, as the run itself has them."""
    recipe = read_recipe(str(recipe_file), [f"space={space}", f"model.quantization={quantization}", "output.export=[]"])
    found, bench = fit.make_plan(recipe), setup.Measuring.build(recipe)
    leaves = bench.space.leaves()
    assert found.workload.elements == sum(leaf.value.numel() for leaf in leaves)
    assert found.workload.full_blocks == len(bench.base.blocks) - bench.base.cut - 1
    assert recipe.space.points_per_forward == bench.space.width
    empty = estimate_work.unattached_base(recipe, found.shape)
    assert recipe.space.describe(empty) == bench.space.describe() and empty.cut == bench.base.cut
    assert recipe.space.virtual_tokens == empty.ahead == bench.base.ahead
    longest = max(bench.task.batch(step).tokens for step in range(recipe.train.steps))
    assert estimate_work.longest_forwards(recipe, found.shape, found.datasets)[0].tokens == longest
    bare = estimate_memory.trained_bytes(found.shape, found.workload)
    if not found.workload.trains_all:
        assert bare >= sum(leaf.value.nbytes for leaf in leaves)


def test_a_conversion_maps_the_source_beside_what_it_makes(half: Path) -> None:
    facts = estimate_facts.read_model_shape(Model(source=str(half), quantization="none"))
    assert facts.stored_type == "float16" and facts.stored_itemsize == 2
    assert estimate_memory.loading_bytes(facts, work_like(facts)) == 0
    assert estimate_memory.loading_bytes(facts, work_like(facts, is_source_type=False)) == 2 * facts.elements
    quantised = estimate_memory.loading_bytes(facts, work_like(facts, quantization="nf4", has_cached_weights=False))
    assert (
        quantised == 4 * facts.elements - 2 * facts.table_elements
        and estimate_memory.loading_bytes(facts, work_like(facts, quantization="nf4")) == 0
    )


def test_slots_are_those_that_the_rules_keep() -> None:
    for word in list_words("methods.rules"):
        rule = load_part("rule", word)()
        real = rule.slots(Leaf("x", 0, torch.zeros(640), (), 640), 10)
        assert estimate_work.count_rule_slots(rule) * 640 == sum(
            x.numel() for x in real.values() if isinstance(x, torch.Tensor)
        ), word
    assert estimate_work.count_rule_slots(load_part("rule", "adam")()) == 2


def test_the_packaged_model_is_known_before_it_is_fetched(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packaged, "fetch_archive", lambda archive: pytest.fail("fetched"))
    facts = estimate_facts.read_model_shape(Model(source="smollm2-135m-instruct"))
    assert facts.folder is None and facts.elements == 134_515_008 and facts.stored_itemsize == 2


def test_of_a_hub_id_the_configuration_alone_is_fetched(
    recipe_file: Path, llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "snapshot").mkdir()
    (tmp_path / "snapshot/config.json").write_bytes((llama / "config.json").read_bytes())
    asked: list[Any] = []
    monkeypatch.setattr(hub, "download_snapshot", lambda *args: asked.append(args) or tmp_path / "snapshot")
    found = case(recipe_file, "model.source=org/name")
    assert asked == [("model", "org/name", None, ["config.json"])]
    assert found.datasets is None and found.workload.step.length == 64 and found.needed_bytes > 0


# -- more takes more


@pytest.mark.parametrize(
    "key,values",
    [
        ("train.batch", [1, 4, 16, 60]), ("space.rank", [1, 8, 64]), ("estimator.queries", [1, 4, 16]),
        ("train.rows", [64, 512, 4096]), ("model.quantization", ["nf4", "int8", "none"]),
        ("model.compute_dtype", ["bf16", "fp32"]), ("rule.name", ["sgd", "momentum", "adam"]),
    ],
)  # fmt: skip
def test_more_takes_more(recipe_file: Path, key: str, values: list[Any]) -> None:
    first = case(recipe_file, "space.layers=all", "rule={name: sgd}", "train.steps=8")
    found = [first.with_value(key, value) for value in values]
    sums = [
        one.workload and sum(estimate_memory.memory_by_moment(one.shape, one.workload)["step"].values())
        for one in found
        if one
    ]
    assert len(sums) == len(values) and sums == sorted(sums) and sums[0] < sums[-1]


def test_logits_of_the_whole_vocabulary_are_a_moment_of_their_own(recipe_file: Path) -> None:
    options = case(recipe_file)
    words_ = case(recipe_file, "task={name: lm}")
    assert "step's logits" in words_.moment_totals and "step's logits" not in options.moment_totals
    read, columns = words_.workload.step.loss_rows, words_.workload.step.head_columns
    assert columns == words_.shape.vocabulary and read == words_.workload.step.tokens
    assert estimate_memory.logit_bytes(words_.shape, words_.workload.step) == 4 * (2 * read * columns + columns * 64)


def test_parts_are_those_of_the_fullest_moment(recipe_file: Path) -> None:
    found = case(recipe_file)
    assert (
        sum(found.parts.values())
        == found.needed_bytes
        == max(found.moment_totals.values())
        == found.moment_totals[found.fullest_moment]
    )
    assert found.parts["overhead"] > 100e6  # this very process: torch and transformers


# -- budgets


def test_a_budget_is_met_by_fewer_rows_first(recipe_file: Path) -> None:
    found = case(
        recipe_file,
        "space.layers=all",
        "train.batch=16",
        "estimator.queries=8",
        "model.quantization=none",
        "model.source=" + wide(recipe_file),
    )
    least = found.with_value("train.rows", 64)
    assert least is not None and least.needed_bytes < found.needed_bytes
    fitted, changes = fit.fit_plan(found, least.needed_bytes)
    assert [lever.key for lever in changes] == ["train.rows"] and fitted.needed_bytes <= least.needed_bytes
    lever = fit.find_savings(found, least.needed_bytes)[0]
    assert (
        lever.plan.needed_bytes <= least.needed_bytes
        and lever.saved_bytes == found.needed_bytes - lever.plan.needed_bytes
    )
    assert lever.format_change(least.needed_bytes).endswith("MB, fits)") and lever.format_change(1).endswith("MB)")
    assert fit.fit_plan(found, 1)[0].needed_bytes > 1


def wide(recipe_file: Path) -> str:
    """A model whose activations are more than a rounding: configuration alone, beside the tiny one's tokenizer."""
    source = Path(read_recipe(str(recipe_file)).model.source)
    folder = recipe_file.parent / "wide"
    shutil.copytree(source, folder, ignore=shutil.ignore_patterns("*.safetensors"), dirs_exist_ok=True)
    config = json.loads((folder / "config.json").read_text())
    config |= {"hidden_size": 1024, "intermediate_size": 4096, "num_attention_heads": 16, "head_dim": 64}
    (folder / "config.json").write_text(json.dumps(config))
    return str(folder)


@pytest.mark.parametrize(
    "text,count", [("8GB", 8_000_000_000), ("7.5GiB", 8_053_063_680), ("900 mb", 900_000_000), ("1k", 1000), ("12", 12)]
)
def test_amounts(text: str, count: int) -> None:
    assert machine.parse_bytes(text, "--budget") == count


@pytest.mark.parametrize("text", ["", "8 gigs", "GB", "-1GB", "0", "nan", "1e9", "8GBB"])
def test_odd_budgets_get_a_sentence(zoedge: Any, recipe_file: Path, text: str) -> None:
    done = zoedge("estimate", recipe_file, f"--budget={text}")
    assert done.code == 2 and not done.out
    assert done.err == f"zoedge: --budget: '{text}' is not an amount of memory, such as 8GB, 7.5GiB or 900MB.\n"


# -- the command


def test_estimate_fits(zoedge: Any, recipe_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading, "load_base", lambda spec: pytest.fail("loaded"))
    done = zoedge("estimate", recipe_file)
    assert done.code == 0 and "memory   fits: needs" in done.out and "time     about" in done.out
    for word in (
        "weights",
        "embeddings",
        "trained",
        "activations",
        "overhead",
        "quantised cache",
        "lower layers",
        "log",
    ):
        assert word in done.out
    assert not (recipe_file.parent / "runs").exists()


def test_estimate_will_not_fit(zoedge: Any, recipe_file: Path) -> None:
    done = zoedge("estimate", recipe_file, "--budget", "50MB", "--json")
    found = json.loads(done.out)
    assert done.code == 3 and not found["fits"] and found["free"] == 50_000_000 and found["change"] == []
    assert sum(found["predicted"].values()) == found["needs"] > 50e6
    done = zoedge("estimate", recipe_file, "--budget", "50MB")
    assert done.code == 3 and "Will not fit: needs " in done.out and "50 MB free on the budget: weights" in done.out


def test_estimate_refuses_what_a_recipe_may_not_say(zoedge: Any, recipe_file: Path) -> None:
    assert zoedge("estimate", recipe_file, "train.batch=0").code == 2
    done = zoedge("estimate", recipe_file, "--device", "tpu")
    assert (done.code, done.err) == (2, "zoedge: --device: 'tpu' is not cpu or cuda.\n")
    done = zoedge("estimate", recipe_file, "space.targets=[query]")
    assert done.code == 3 and "no module named 'query'" in done.err


def test_the_log_is_as_large_as_predicted(recipe_file: Path) -> None:
    recipe = read_recipe(str(recipe_file))
    finetune.train(recipe, run_folder.run_folder(recipe), make_display("quiet"))
    size = (run_folder.run_folder(recipe) / run_folder.LOG_FILE).stat().st_size
    assert abs(time.disk_bytes(case(recipe_file))["log"] - size) < 4096  # its header, with the recipe


def test_the_bases_predictions_are_at_most_as_large_as_predicted(
    recipe_file: Path, roberta: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of 10 and 20 rows; none of a model that fills masks."""
    files: list[Any] = []
    real = tempfile.TemporaryFile
    monkeypatch.setattr(drift.tempfile, "TemporaryFile", lambda **where: files.append(real(**where)) or files[-1])
    bench = setup.Measuring.build(read_recipe(str(recipe_file)))
    evaluate.make_meter(bench.base, tmp_path, [bench.texts.valid, bench.texts.test])
    written = [file.seek(0, 2) for file in files[-2:]]
    predicted = time.disk_bytes(case(recipe_file))["base's predictions"]
    assert min(written) > 50 * 4 * 348 and sum(written) <= predicted and max(written) <= predicted // 2
    masked = case(recipe_file, f"model.source={roberta}", MASKED_TASK, "space.targets=all")
    assert "base's predictions" not in time.disk_bytes(masked)


# -- the gate


def test_what_cannot_fit_is_refused_before_it_is_loaded(
    zoedge: Any, recipe_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loading, "load_base", lambda spec: pytest.fail("loaded"))
    monkeypatch.setattr(packaged, "fetch_archive", lambda archive: pytest.fail("fetched"))
    monkeypatch.setenv("ZOEDGE_MEMORY", "50MB")
    for changes in ((), ("model.source=smollm2-135m-instruct",)):
        done = zoedge("finetune", recipe_file, "--quiet", *changes)
        assert done.code == 3 and not done.out
        assert (
            done.err.startswith("zoedge: Will not fit: needs ")
            and "MB free on ZOEDGE_MEMORY (50 MB): weights" in done.err
        )
        assert done.err.endswith(" Nothing was downloaded or changed.\n")
    assert not (recipe_file.parent / "runs").exists()


def test_the_refusals_words(recipe_file: Path) -> None:
    """Message 7, of a case whose numbers are known."""
    found = case(recipe_file)
    text = fit.format_refusal(found, 7_600_000, "RTX 3060 (12.9 GB)")
    assert text.startswith(
        f"Will not fit: needs {machine.format_bytes(found.needed_bytes)}, 8 MB free on RTX 3060 (12.9 GB): weights 0 | "
    )
    assert " MB." in text
    assert (
        fit.format_parts({"weights": 3_900_000_000, "logits": 4_100_000_000, "loader": 0})
        == "weights 3.9 | logits 4.1 GB"
    )


def test_what_fits_is_not_refused(zoedge: Any, recipe_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    needs = case(recipe_file).needed_bytes
    monkeypatch.setenv("ZOEDGE_MEMORY", f"{needs}")
    assert fit.check_memory(read_recipe(str(recipe_file))) is not None
    monkeypatch.setenv("ZOEDGE_MEMORY", "many")
    done = zoedge("finetune", recipe_file, "--quiet")
    assert done.code == 2 and "ZOEDGE_MEMORY: 'many' is not an amount of memory" in done.err


def test_only_in_between_are_rows_tokenised(recipe_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Texts as long as data.max_length would not fit, and those that are there do."""
    recipe = read_recipe(
        str(recipe_file),
        ["space.layers=all", "train.batch=32", "model.quantization=none", "model.source=" + wide(recipe_file)],
    )
    facts = estimate_facts.read_model_shape(recipe.model)
    longest = fit.Plan(recipe, facts, None, 0)
    real = fit.Plan(recipe, facts, fit.tokenise_datasets(recipe, facts), 0)
    assert real.needed_bytes < 0.9 * longest.needed_bytes
    monkeypatch.setattr(fit, "measure_overhead", lambda facts: 0)
    asked: list[int] = []
    genuine = fit.tokenise_datasets
    monkeypatch.setattr(fit, "tokenise_datasets", lambda *args: asked.append(1) or genuine(*args))
    for most, times in ((2 * longest.needed_bytes, 0), (real.needed_bytes, 1), (1000, 0)):
        asked.clear()
        monkeypatch.setattr(fit, "read_memory_budget", lambda cuda, most=most: (most, "here"))
        if most > 1000:
            assert fit.check_memory(recipe) is not None
        else:
            with pytest.raises(DataError, match="Will not fit"):
                fit.check_memory(recipe)
        assert len(asked) == times


def test_other_mistakes_keep_their_sentences(zoedge: Any, recipe_file: Path) -> None:
    done = zoedge("finetune", recipe_file, "--quiet", "model.source=nowhere")
    assert done.code == 3 and "model.source: no folder 'nowhere'" in done.err


def test_control_groups_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inner = tmp_path / "outer" / "inner"
    inner.mkdir(parents=True)
    for folder, most, used in ((inner, "max", 5), (inner.parent, 1000, 700)):
        (folder / "memory.max").write_text(f"{most}\n")
        (folder / "memory.current").write_text(f"{used}\n")
        (folder / "memory.stat").write_text("anon 3\ninactive_file 200\n")
    monkeypatch.setattr(machine, "CGROUP_ROOT", tmp_path)
    monkeypatch.setattr(machine, "CGROUP_MEMBERSHIP", tmp_path / "cgroup")
    (tmp_path / "cgroup").write_text("0::/outer/inner\n")
    assert list(machine.read_cgroup_limits()) == [(1000, 500)]
    assert min(machine.read_available_memory())[0] == 500


# -- measured


def test_a_run_notes_what_it_took(recipe_file: Path) -> None:
    recipe: Recipe = read_recipe(str(recipe_file))
    finetune.train(recipe, run_folder.run_folder(recipe), make_display("quiet"))
    lines = {line["event"]: line for line in run_folder.read_metrics(run_folder.run_folder(recipe))}
    memory, took = lines["memory"], lines["time"]
    assert set(memory["predicted"]) >= {"weights", "embeddings", "overhead"}
    assert all(isinstance(count, int) and count >= 0 for count in memory["predicted"].values())
    assert memory["measured"] > 50e6
    assert {k for k in took if k != "event"} == {"load", "start", "trunk", "drift", "steps", "scoring", "export"}
    assert all(took[k] > 0 for k in took if k != "event")


def test_the_child_takes_the_longest_step(recipe_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = read_recipe(str(recipe_file))
    seen: list[int] = []
    genuine = engine.measure
    monkeypatch.setattr(
        engine, "measure", lambda run, step: seen.append(run.task.batch(step).tokens) or genuine(run, step)
    )
    found = measure.measure_own_memory(recipe)
    assert set(found) == {"loading", "base", "lower layers", "step", "look"}
    assert all(one["peak"] >= one["before"] > 0 for one in found.values())
    assert seen == [estimate_work.longest_forwards(recipe, *facts_and_texts(recipe))[0].tokens] * 2


def facts_and_texts(recipe: Recipe) -> tuple[estimate_facts.ModelShape, Any]:
    found = fit.make_plan(recipe)
    return found.shape, found.datasets


@pytest.mark.slow
def test_measure_on_a_tiny_model(zoedge: Any, recipe_file: Path) -> None:
    done = zoedge("estimate", recipe_file, "--measure")
    assert done.code == 0 and "measured in a process of its own" in done.out
    line = next(line for line in done.out.splitlines() if line.split()[:1] == ["peak"])
    assert line.endswith("%")


@pytest.mark.slow
def test_a_child_that_fails_says_why(recipe_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = read_recipe(str(recipe_file), ["model.source=nowhere"])
    with pytest.raises(errors.ZoedgeError, match="--measure: the process that took the step ended") as caught:
        measure.measure_in_child(recipe)
    assert caught.value.exit_code == 3 and "no folder 'nowhere'" in str(caught.value)


def test_odd_amounts_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ZOEDGE_MEMORY", "lots")
    with pytest.raises(UsageError, match="ZOEDGE_MEMORY: 'lots' is not an amount"):
        machine.read_memory_budget(False)

"""What the benchmarks compare with computes what zoedge computes: else their ratios would say nothing."""

from __future__ import annotations

import subprocess
import sys
from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.paths import ROOT

HERE = ROOT / "benchmarks"
sys.path.insert(0, str(HERE))

import _measure  # noqa: E402
import _plain  # noqa: E402
import gpu  # noqa: E402
import memory  # noqa: E402
import parts  # noqa: E402
import race  # noqa: E402
import report  # noqa: E402
import step  # noqa: E402

from zoedge.core import engine  # noqa: E402
from zoedge.scoring.models.loading import load_base  # noqa: E402


@pytest.fixture
def args(llama: Path, monkeypatch: pytest.MonkeyPatch) -> Namespace:
    monkeypatch.setattr(_measure, "LEAST", 1e-3)
    found = Namespace(model=str(llama), threads=1, repeat=1)
    step.shape(found)
    return found


@pytest.mark.parametrize("task", ["classify", "lm"])
@pytest.mark.parametrize(("base", "space"), [("nf4", "all"), ("fp32", "last"), ("fp32", "full")])
def test_same_gradient(args: Namespace, tmp_path: Path, base: str, space: str, task: str) -> None:
    """MeZO's step along zoedge's direction measures the same projected gradient."""
    cell = step.Cell(base, space, task, 4, 9)
    loaded = load_base(step.recipe(args, cell).model)
    with step.prepared(args, cell, loaded, tmp_path) as bench:
        run = bench.run(Memory())
        record = engine.measure(run, 0)
        batch = run.task.batch(0)
        values = dict(bench.space.tensors())
        z = torch.cat([run.direction(0, 0, leaf).z.clone() for leaf in bench.space.leaves()])
        drawn = dict(zip(values, z.split([v.numel() for v in values.values()])))
        draw = lambda parameters, seed: (drawn[name].view(values[name].shape).clone() for name in values)
        plain = {name: value.clone() for name, value in values.items()} if space != "full" else values
        for once in (False, True):
            loss = _plain.loss_of(loaded.model, batch, once)
            if space == "full":
                g = _plain.mezo(list(plain.values()), loss, 3e-3, 0.0, 0, draw)
            else:
                with _plain.adapted(loaded.model, plain, bench.space.scale):
                    g = _plain.mezo(list(plain.values()), loss, 3e-3, 0.0, 0, draw)
            assert abs(record.g[0]) > 1e-2
            assert g == pytest.approx(record.g[0], rel=2e-2)


@pytest.mark.parametrize("task", ["classify", "lm"])
def test_same_logits(args: Namespace, tmp_path: Path, task: str) -> None:
    """The floor computes the logits that zoedge's loss reads."""
    cell = step.Cell("nf4", "scales", task, 3, 9)
    loaded = load_base(step.recipe(args, cell).model)
    with step.prepared(args, cell, loaded, tmp_path) as bench:
        batch = bench.task.batch(0)
        columns = batch.targets[0] if task == "classify" else torch.arange(loaded.model.config.vocab_size)
        ours = loaded.logits(loaded.hidden_states(batch, 2), columns)
        torch.testing.assert_close(_plain.floor(loaded, batch, 2).float(), ours, rtol=1e-3, atol=1e-3)


class Memory(list[Any]):
    next_seq = 0


def test_a_cell_from_end_to_end(args: Namespace) -> None:
    cells = {step.Cell("nf4", "qv", "classify", 2, 9): [1, 2]}
    (row,) = step.times(args, "nf4", cells)
    row["memory"] = {"plain 2": [2.0], "step": [3.0], "mezo": [4.0]}
    found = step.ratios(row)
    assert {"step / floor", "2 queries / 2 steps", "mezo fp32 / step", "not forwards"} <= found.keys()
    assert found["memory: step / plain"][0] == 1.5 and "| memory: step / plain " in step.text([row])


def test_defaults_hold_every_target() -> None:
    wanted = "1.1 1.2 6.0 12.0 15.0 2.5 2.7 0.7 0.03".split()
    found = set()
    for cell, queries in step.DEFAULT.items():
        assert cell.exists
        names = ["step / floor", "mezo / step", "mezo once / step", "mezo fp32 / step", "not forwards"]
        for name in names + [f"{q} queries / {q} steps" for q in queries]:
            if bound := step.target(cell._asdict(), name):
                found.add(str(bound[1]))
    assert found == set(wanted) and set(step.REMEMBERED) <= step.DEFAULT.keys()


def test_parts(args: Namespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts, "SHAPE", (64, 64))
    rows = parts.replay(args, tmp_path) + parts.noise(args, tmp_path) + parts.log(args, tmp_path)
    assert len(rows) > 15 and all(value > 0 for row in rows for value in row["values"])
    assert "| replay full bf16 " in parts.text(rows)


def test_first_order_races_on_the_same_logits(args: Namespace, recipe_file: Path, tmp_path: Path) -> None:
    from zoedge.lab._model import SharedModel
    from zoedge.recipe.reading import read_recipe

    model = SharedModel(read_recipe(str(recipe_file)), tmp_path)
    bench, args.steps = model.measuring, 3
    batch = bench.task.batch(0)
    ours = bench.task.outputs(bench.base, batch, 1)[0].float()
    torch.testing.assert_close(race.differentiable(bench.base, batch).detach(), ours, rtol=1e-4, atol=1e-4)
    batch = bench.texts.train.collate(range(8))
    assert len({len(bench.texts.train.tokens[i]) for i in batch.index}) > 1  # MeZO's loss of padded texts is the same
    loss = bench.task.score(bench.base, batch, 1).mean().item()
    for once in (False, True):
        assert _plain.loss_of(bench.base.model, batch, once)() == pytest.approx(loss, rel=1e-4)
    found = race.run(model, race.FIRST, 0, args)
    assert [point[0] for point in found["curve"]] == [12, 24, 36] and found["peak"] > 0
    assert bench.space.value.abs().sum() > 0 and any(v.any() for k, v in bench.space.tensors() if k.endswith("lora_B"))
    assert "| first-order " in race.text({"films": {race.FIRST: {"0": found}}})
    assert race.reached([[[8, 1.0, 0.7]], [[8, 2.0, 0.5]]], 0.6, 0) == "8 (1 of 2)"


def test_fits_race_on_the_same_rows(
    args: Namespace, recipe_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The closed form and a library's regression: a point for each number of rows, better than the base with all."""
    from zoedge.lab._model import SharedModel
    from zoedge.recipe.reading import read_recipe

    model, args.steps = SharedModel(read_recipe(str(recipe_file)), tmp_path), 10**6
    monkeypatch.setattr(race, "CLOSED_ROWS", (20, 50, 1500))
    for name in (race.CLOSED, race.LOGISTIC):
        found = race.run(model, name, 0, args)
        assert [point[0] for point in found["curve"]] == [20, 50], "the recipe has 50 training rows"
        assert all(0 < point[4] < 5 and 0.3 <= point[2] <= 1 for point in found["curve"]) and found["peak"] > 0
        assert f"| {name} " in race.text({"films": {name: {"0": found}}})


@pytest.mark.parametrize(("name", "first"), [(race.START, 50), (race.ALIGNED, 256)])
def test_a_space_of_its_own_races_and_leaves_the_models_alone(
    args: Namespace, recipe_file: Path, tmp_path: Path, name: str, first: int
) -> None:
    from zoedge.lab._model import SharedModel
    from zoedge.recipe.reading import read_recipe

    model, args.steps = SharedModel(read_recipe(str(recipe_file)), tmp_path), 2
    kept = model.measuring.space
    found = race.run(model, name, 0, args)
    assert [point[0] for point in found["curve"]] == [first + 160, first + 320], (
        "one pass over the rows, five points of 32 a step"
    )
    assert model.measuring.space is kept and not found["diverged"]


def test_the_page() -> None:
    curve = {"curve": [[16, 1.0, 0.7, 0.7, 0.5]], "peak": 500.0, "diverged": False}
    rows = [parts.row("replay LoRA 1 M", "steps/s", [2000.0], target=("value", ">=", 1000))]
    machine = _measure.machine()
    page = report.page(
        {
            "parts": {"machine": machine, "model": "m", "rows": rows},
            "race": {"machine": machine, "settings": {"model": "m"}, "sets": {"films": {"mezo": {"0": curve}}}},
        }
    )
    assert "| >= 1000 | yes |" in page and "| mezo  " in page and machine["torch"] in page
    assert "Untested: no GPU was available" in page and "| opt-13b " in page
    row = {"shape": "llama-7b", **step.Cell("nf4", "qv", "classify", 16, 64)._asdict(), "weights": 3.9}
    row |= {"seconds": {"floor": [1.0], "step": [1.2]}, "memory": {"floor": [4.1, 4.2], "step": [4.3, 4.4]}}
    page = report.page({"gpu": {"machine": machine | {"gpu": "a card"}, "model": "random weights", "rows": [row]}})
    lines = [" ".join(line.split()) for line in page.splitlines()]
    where = "| llama-7b | nf4 | qv | classify | 16 x 64 |"
    assert "Untested" not in page and f"random weights, {machine['date']}, a card, " in page
    assert f"{where} step / floor | 1.2 | 1.2 .. 1.2 | <= 1.1 | no |" in lines
    assert f"{where} memory: step | 4.30 GB | reserved 4.40 | <= 5 | yes |" in lines


def test_the_gpus_benchmark_on_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its lines at a tiny shape: a step of its made base is MeZO's in what it measures, and the sums count its weights."""
    monkeypatch.setattr(_measure, "LEAST", 1e-3)
    args = Namespace(device="cpu", batch=2, tokens=9, task=["classify"], repeat=1, model="tiny")
    (row,) = gpu.measured(args, "tiny", "nf4", "qv")
    assert row["trained"] == 2 * 4 * 8 * 64 and row["seconds"].keys() == row["memory"].keys() == {
        "floor",
        "step",
        "mezo",
    }
    (row,) = gpu.measured(args, "tiny", "bf16", "full")
    assert {"mezo once", "step drawn"} < row["seconds"].keys() and "| tiny " in gpu.text([row])
    base = gpu.made("tiny", "nf4", torch.device("cpu"), torch.bfloat16)
    found, counted = dict.fromkeys(("matrices", "tables", "vectors"), 0), gpu.sums("tiny")
    for name, p in base.model.named_parameters():
        kind = "matrices" if hasattr(p, "quant_state") else "vectors" if p.dim() == 1 else "tables"
        found[kind] += p.nbytes
        if kind == "matrices":
            state = p.quant_state
            assert state.nested and name.startswith("model.layers")
            found[kind] += state.absmax.nbytes + state.state2.absmax.nbytes
    assert found == {kind: pytest.approx(counted[kind], rel=2e-3) for kind in found}


def test_a_gpus_memory_on_paper() -> None:
    """The shapes have the parameters that their names say; every target would hold."""
    for shape, billions in {"llama-7b": 6.738, "llama-13b": 13.016, "opt-6.7b": 6.658, "opt-13b": 12.853}.items():
        found = gpu.sums(shape)
        parameters = found["matrices"] / gpu.NF4 + (found["tables"] + found["vectors"]) / 2
        assert parameters / 1e9 == pytest.approx(billions, abs=0.001)
        for space in ("qv", "all"):
            for task in ("classify", "lm"):
                assert gpu.together(gpu.sums(shape, space, task)) / 1e9 < gpu.LIMITS[shape]


def test_random_numbers_lie_where_the_weights_do() -> None:
    found = list(_plain.normals([torch.zeros(2, 3, dtype=torch.bfloat16, device="meta")], 0))
    assert found[0].device.type == "meta" and found[0].dtype == torch.bfloat16


@pytest.mark.parametrize("name", ["step", "parts", "race", "memory", "gpu", "report"])
def test_help(name: str) -> None:
    command = [sys.executable, str(HERE / f"{name}.py"), "--help"]
    assert "usage" in subprocess.run(command, capture_output=True, text=True, check=True).stdout


def test_a_backward_pass_by_blocks_has_the_gradients_of_a_whole_one(args: Namespace, tmp_path: Path) -> None:
    """The strictest rival of the memory benchmark computes what plain backpropagation computes."""
    cell = memory.Cell("1", 9, 2)
    base = load_base(memory.make_recipe(args, cell, tmp_path).model)
    model = memory.add_adapters(base, cell.depth)
    with torch.no_grad():
        for name, value in model.named_parameters():
            if "lora_B" in name:
                value.normal_(std=0.05, generator=torch.Generator().manual_seed(1))
    rows = memory.make_examples(base, cell)
    ids, labels = torch.tensor([tokens[:9] for tokens in rows.tokens]), torch.tensor(rows.labels)
    head = base.facts.head(base.model).weight[rows.targets[0]].float()
    trained = [p for p in model.parameters() if p.requires_grad]

    def loss(h: Any) -> Any:
        return torch.nn.functional.cross_entropy(torch.nn.functional.linear(h.float(), head), labels[:1])

    loss(base.model.base_model(input_ids=ids[:1], use_cache=False).last_hidden_state[:, -1]).backward()
    whole = [p.grad.clone() for p in trained if p.grad is not None]
    model.zero_grad()
    memory.backward_by_blocks(base, cell, ids[:1], loss, tmp_path)
    found = [p.grad for p in trained if p.grad is not None]
    assert len(whole) == len(found) == len(trained) > 0
    for a, b in zip(whole, found):
        assert float((a - b).norm()) < 0.02 * float(a.norm()), "its states are kept in bf16, of 8 bits"
    assert max(float(a.abs().max()) for a in whole) > 1e-3


def test_memory_is_measured_of_every_kind(args: Namespace) -> None:
    cell = memory.Cell("1", 9, 1)
    found = {kind: memory.measure(args, cell, kind) for kind in ("zoedge", "plain", "block")}
    assert all(one is not None and one["MiB"] > 1 and one["seconds"] > 0 for one in found.values())
    assert "1 blocks, 1 x 9" in memory.text([{**cell._asdict(), "kinds": found}])

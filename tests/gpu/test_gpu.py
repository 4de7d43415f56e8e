"""What only a CUDA device can tell (`make gpu`): logs replay there and back to the same bits, and the traps 1, 2 and 5."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from golden import make
from helpers.runs import replay_to
from helpers.scores import QUANTISED, attach, bnb_linears, load, random_sentences
from torch.nn.functional import linear

from zoedge.commands import verify
from zoedge.core import digests, engine
from zoedge.core.types import Key
from zoedge.log.log import Log
from zoedge.methods.noise.rademacher import Rademacher
from zoedge.methods.spaces.lora import LoraSpace
from zoedge.recipe.reading import read_recipe
from zoedge.run import folder as run_folder
from zoedge.run import setup
from zoedge.scoring.models import quantised
from zoedge.scoring.models.base import Base
from zoedge.scoring.tasks.classify import Classify, ClassifyTraining

pytestmark = pytest.mark.gpu
CUDA = "cuda"
EXPECTED = json.loads(make.EXPECTED.read_text())


# -- replay


def state(log: Log, device: str, base: str | None = None) -> str:
    space = replay_to(log, device=device, base=base)
    assert {leaf.value.device.type for leaf in space.leaves()} == {device}
    return digests.digest(space).hex()


@pytest.mark.parametrize("name", EXPECTED)
def test_a_cpus_golden_log_replays_on_the_gpu(name: str, tmp_path: Path) -> None:
    """Every noise, estimator, rule and space."""
    base = str(make.base(tmp_path / "tiny"))
    with Log.open(make.HERE / f"{name}.zlog") as log:
        assert state(log, CUDA, base) == EXPECTED[name]["state"]


@pytest.mark.parametrize(
    "changes",
    [
        (),
        ("noise=normal", "rule={name: adamu, lr: 1e-3}"),
        ("space=scales", "output.export=[]"),
        ("model.quantization=none", "space=full", "output.export=[]", "model.compute_dtype=fp32", "rule.lr=1e-4"),
        ("model.quantization=none", "space=full", "output.export=[]", "model.compute_dtype=bf16", "rule.lr=1e-4"),
        ("model.quantization=none", "space=full", "output.export=[]", "model.compute_dtype=fp16", "noise=normal"),
    ],
)
def test_a_gpus_log_replays_on_the_cpu(recipe_file: Path, tmp_path: Path, changes: tuple[str, ...]) -> None:
    bench = setup.Measuring.build(read_recipe(str(recipe_file), ["train.steps=12", f"model.device={CUDA}", *changes]))
    start, folder = digests.digest(bench.space), tmp_path / "run"
    folder.mkdir()
    with setup.begin_run(bench, folder) as log:
        for _ in engine.play(bench.run(log), 12):
            pass
        log.finish(final := digests.digest(bench.space))
    assert final != start and {leaf.value.device.type for leaf in bench.space.leaves()} == {CUDA}
    with Log.open(folder / run_folder.LOG_FILE) as log:
        assert state(log, "cpu") == state(log, CUDA) == final.hex()
        assert verify.find_difference(log) == "torch and numpy agree here at every step."


# -- 1. the function that is differentiated


def base_of(folder: Path, quantization: str, device: str = CUDA, dtype: str = "fp32") -> Base:
    return load(folder, quantization, device=device, compute_dtype=dtype)


def scores(base: Base, space: LoraSpace, eps: float) -> torch.Tensor:
    """[2, 16] losses at two points."""
    z, examples = Rademacher().draw(Key(1, 1, 0), space.leaves()[0]), random_sentences()
    with space.visit([lambda leaf: z * eps, lambda leaf: z * -eps]):
        return ClassifyTraining(Classify(), examples, 0, 16).score(base, examples.collate(range(16)), 2).cpu()


@pytest.mark.parametrize("quantization", QUANTISED)
def test_losses_on_the_gpu_are_a_smooth_function_of_eps(llama: Path, quantization: str) -> None:
    """And a CPU's: both read the same quantised weights from the cache."""
    base = base_of(llama, quantization)
    space, slopes = attach(base), []
    for eps in (3e-3, 1e-3, 3e-4):
        up, down = scores(base, space, eps).mean(1).tolist()
        slopes.append((up - down) / (2 * eps))
    assert max(slopes) - min(slopes) < 0.02 * abs(slopes[1])
    other = base_of(llama, quantization, "cpu")
    assert torch.allclose(scores(base, space, 3e-3), scores(other, attach(other), 3e-3), rtol=0, atol=1e-4)


@pytest.mark.parametrize("quantization", QUANTISED)
def test_no_mode_changes_the_gpus_forward(llama: Path, quantization: str) -> None:
    base, batch = base_of(llama, quantization), random_sentences().collate(range(8))
    first = base.hidden_states(batch, 1)
    codes = {name: module.weight.data.clone() for name, module in bnb_linears(base.model).items()}
    for mode in (base.model.eval, base.model.train):
        mode()
        with torch.no_grad():
            base.model(input_ids=batch.ids[:, :40].to(CUDA))
        torch.testing.assert_close(
            base.hidden_states(batch, 1), first, rtol=0, atol=1e-5
        )  # a GPU's sums may have any order
    assert all(torch.equal(m.weight.data, codes[name]) for name, m in bnb_linears(base.model).items())


# -- 2. and 5. the weights that a forward uses, at any number of rows


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("quantization", QUANTISED)
def test_any_number_of_rows_is_the_dequantised_product(llama: Path, quantization: str, dtype: str) -> None:
    """bitsandbytes has other kernels on CUDA for few rows; int8's would quantise the activations, too."""
    base, batch = base_of(llama, quantization, dtype=dtype), random_sentences().collate(range(16))
    for _ in range(3):
        base.hidden_states(batch, 1)
    fresh: Any = base_of(llama, quantization, dtype=dtype).model
    close = 1e-5 if dtype == "fp32" else 2e-2
    for name, module in bnb_linears(base.model).items():
        want = quantised.dequantise_weight(fresh.get_submodule(name), base.dtype)
        assert want.device.type == CUDA and torch.equal(quantised.dequantise_weight(module, base.dtype), want)
        for rows in (1, 3, 8, 64, 512):
            x = torch.randn(rows, module.in_features, generator=torch.Generator().manual_seed(rows)).to(want)
            with torch.no_grad():
                y = linear(x.double(), want.double())
                assert (module(x) - y).abs().max() < close * y.abs().max(), (name, rows)

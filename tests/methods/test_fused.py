"""The fused kernel for full weights: the perturbed weights' bits are those of drawing, and where it cannot run, one draws.

Triton's interpreter runs the kernel on a CPU, in a process of its own (TRITON_INTERPRET is read at the import). x = 1 as
input shows every weight: the product is exact.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from itertools import cycle
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from helpers.paths import ROOT

from zoedge.core import engine, parts
from zoedge.core.types import Key, Leaf
from zoedge.methods.noise import _fused
from zoedge.methods.noise._lookup import look_up_noise
from zoedge.methods.noise.normal import quantile_table
from zoedge.methods.noise.rademacher import SIGN_TABLE
from zoedge.recipe.reading import read_recipe
from zoedge.run import setup

NOISES = {"rademacher": (8, SIGN_TABLE, 8), "normal": (16, quantile_table(), 1)}
KINDS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
# out x in, number of the first element: odd sizes; whole and broken tiles; offsets in the midst of a counter; beyond 2**32
PLACES = [((33, 96), 40), ((7, 128), 256), ((65, 70), 8), ((20, 50), 13), ((3, 192), 2**33 + 64), ((1, 1), 127)]
KEYS = Key(0, 0, 0), Key(2**64 - 1, 2**32 - 1, 2**32 - 1), Key(2**63 + 5, 7, 1, 4)
FULL = ["model.quantization=none", "space=full", "output.export=[]", "train.steps=3"]
absent = find_spec("triton") is None
interpreted = pytest.mark.skipif(absent, reason="triton is not installed (a wheel of 286 MB): pip install triton")


def differing(product: Callable[..., Any], noise: str, kind: torch.dtype, device: str = "cpu") -> list[str]:
    """The places where weights differ from those that are drawn; keys, one point and both signs take turns."""
    bits, table, width = NOISES[noise]
    found, seeded = [], torch.Generator().manual_seed(0)
    for (shape, offset), key, cs in zip(PLACES, cycle(KEYS), cycle([(0.7, -0.7), (2.9e-3, -2.9e-3), (0.2,), (-3e-3,)])):
        n, k = shape
        w = torch.randn(shape, generator=seeded)
        w[0, 0] = 1e-40  # a subnormal one, too
        w, x = w.to(device, kind), torch.eye(k, dtype=kind, device=device).repeat(len(cs), 1)
        z = look_up_noise(key, Leaf("", offset, w.view(-1)), bits, table, width).view(shape)
        wanted = torch.stack([torch.add(w, z * c).to(kind) for c in cs])
        if not torch.equal(product(bits, table, x, w, None, offset, key, cs).view(len(cs), k, n).mT, wanted):
            found.append(f"{noise} {kind} {shape} {offset} {key} {cs}")
    bias, x = torch.randn(2, 5, generator=seeded).to(device, kind), torch.zeros(2, 1, 3, 16, dtype=kind, device=device)
    still = product(bits, table, x, torch.ones(5, 16, dtype=kind, device=device), bias, 0, KEYS[0], (0.5, -0.5))
    return found if torch.equal(still, bias[:, None, None].expand(2, 1, 3, 5)) else [*found, "bias"]


def stepped(recipe: Any, product: Callable[..., Any] | None) -> tuple[list[float], int]:
    """(losses of a step's points, how many products were the kernel's); None: drawn."""
    calls = []

    def counted(*args: Any) -> Any:
        calls.append(args)
        assert product is not None
        return product(*args)

    with pytest.MonkeyPatch.context() as patch:
        if product is not None:
            patch.setattr(
                _fused, "find_kernel", lambda like, bits, table, width: lambda *args: counted(bits, table, *args)
            )
        bench = setup.Measuring.build(recipe)
        run = bench.run([])  # type: ignore[arg-type]
        run.log = type("Empty", (list,), {"next_seq": 5})()
        losses = list(engine.measure(run, 0).losses)
        modules = [m for m in bench.base.model.modules() if not isinstance(m, (torch.nn.Linear, torch.nn.Embedding))]
        vectors = max(p.numel() for m in modules for p in m.parameters(recurse=False))
        if calls and not hasattr(bench.base.model.model, "decoder"):  # OPT has a table of positions besides
            assert bench.space._scratch.shape[1] == vectors, "no perturbed matrix is stored"
        return losses, len(calls)


# -- anywhere


def drawn(bits: int, table: bytes, x: Any, w: Any, bias: Any, offset: int, key: Key, cs: Any) -> Any:
    """What the kernel computes, by drawing: W + c z is stored."""
    z = look_up_noise(key, Leaf("", offset, w.view(-1)), bits, table, 8 if bits == 8 else 1).view(w.shape)
    some = zip(x.chunk(len(cs)), cs, [None] * len(cs) if bias is None else bias)
    return torch.cat([torch.nn.functional.linear(x, torch.add(w, z * c).to(w.dtype), b) for x, c, b in some])


@pytest.mark.parametrize("noise", NOISES)
@pytest.mark.parametrize(("source", "linears"), [("llama", 7), ("opt", 6)])
@pytest.mark.parametrize("estimator", ["two_sided", "{name: two_sided, queries: 2}"])
def test_a_space_asks_for_what_it_would_have_drawn(
    recipe_file: Path, request: Any, noise: str, source: str, linears: int, estimator: str
) -> None:
    """With a product that draws in the kernel's place, the losses have the same bits: places, keys, signs and biases."""
    folder = request.getfixturevalue(source)
    changes = [*FULL, f"model.source={folder}", f"noise={noise}", f"estimator={estimator}", "model.compute_dtype=bf16"]
    recipe = read_recipe(str(recipe_file), changes)
    plain, _ = stepped(recipe, None)
    found, calls = stepped(recipe, drawn)
    layers = json.loads((folder / "config.json").read_text())["num_hidden_layers"]
    assert calls == linears * layers * len(plain) // 2
    assert found == plain and plain[0] != plain[1]


@pytest.mark.parametrize(
    "options",
    [
        ("estimator=one_sided",),
        ("rule={name: adamu, lr: 1e-4}", "noise=normal"),
        ("rule={name: hizoo, lr: 1e-4}", "estimator=curved"),
        ("noise=low_rank",),
        ("noise={name: sparse, density: 0.5}",),
    ],
)
def test_whatever_is_not_one_noise_times_a_number_is_drawn(recipe_file: Path, options: tuple[str, ...]) -> None:
    losses, calls = stepped(read_recipe(str(recipe_file), [*FULL, *options]), drawn)
    assert calls == 0 and len(losses) >= 2


def test_no_kernel_on_a_cpu_nor_where_it_is_switched_off(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    monkeypatch.setattr(_fused, "is_kernel_exact", lambda *args: asked.append(args) or True)
    monkeypatch.setattr(_fused, "version", lambda name: {"triton": "1.2.3"}[name])
    monkeypatch.setattr(_fused, "find_spec", lambda name: name)
    assert _fused.triton_version() == "triton 1.2.3"
    there: Any = SimpleNamespace(is_cuda=True, device="cuda", dtype=torch.bfloat16)
    for word in NOISES:
        noise = parts.load_part("noise", word)()
        assert noise.kernel(torch.zeros(2)) is None and not asked
        assert noise.kernel(there) is not None and asked.pop() == ("cuda", torch.bfloat16, *NOISES[word])
        with monkeypatch.context() as patch:
            patch.setenv("ZOEDGE_FUSED", "0")
            assert noise.kernel(there) is None and not asked and _fused.triton_version() == "none"
        with monkeypatch.context() as patch:
            patch.setattr(_fused, "find_spec", lambda name: find_spec("no such package as " + name))
            assert noise.kernel(there) is None and not asked and _fused.triton_version() == "none"
    assert parts.load_part("noise", "low_rank")().kernel(there) is None


@pytest.mark.parametrize("noise", NOISES)
def test_a_kernel_that_fails_or_differs_is_not_used(monkeypatch: pytest.MonkeyPatch, noise: str) -> None:
    def fails(*args: Any) -> Any:
        raise RuntimeError("no compiler\nof this age")

    ask = lambda kind: _fused.is_kernel_exact.__wrapped__(torch.device("cpu"), kind, *NOISES[noise])
    for kind in KINDS.values():
        monkeypatch.setattr(_fused, "perturbed_matmul", drawn)
        assert ask(kind)
        monkeypatch.setattr(
            _fused, "perturbed_matmul", lambda *args: drawn(*args[:6], args[6]._replace(query=3), args[7])
        )
        with pytest.warns(UserWarning, match=r"not used on cpu \(its weights differ"):
            assert not ask(kind)
        monkeypatch.setattr(_fused, "perturbed_matmul", fails)
        with pytest.warns(UserWarning, match=r"not used on cpu \(RuntimeError: no compiler\): directions are drawn"):
            assert not ask(kind)


# -- by Triton's interpreter


@pytest.fixture(scope="module")
def outcome(llama: Path, opt: Path, reviews: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    text = (
        f'version: 1\nname: t\nmodel: {{source: "{opt}"}}\ndata: {{train: "{reviews}", valid: {{split: 10}}}}\n'
        'task: {name: classify, prompt: "{text} It was", options: {negative: " terrible", positive: " great"}}\n'
        "train: {batch: 2}\n"
    )
    path = tmp_path_factory.mktemp("fused") / "tiny.yaml"
    path.write_text(text)
    done = subprocess.run(
        [sys.executable, __file__, str(path)], capture_output=True, text=True, timeout=230, check=False,
        env={**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": os.pathsep.join((str(ROOT), str(ROOT / "tests")))},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    return dict(json.loads(done.stdout.splitlines()[-1]))


@interpreted
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("noise", NOISES)
def test_the_kernels_weights_have_the_bits_of_drawing(outcome: dict[str, Any], noise: str, kind: str) -> None:
    assert outcome[f"{noise} {kind}"] == []


@interpreted
def test_a_step_by_the_kernel_is_a_step(outcome: dict[str, Any]) -> None:
    """Of a model with biases: products differ in the order of their sums alone."""
    assert outcome["agrees"] == [True] * 6
    found, calls, plain = outcome["step"]
    assert calls == 12 and found == pytest.approx(plain, rel=1e-5) and abs(plain[0] - plain[1]) > 1e-3


def main(path: str) -> None:
    """In a process of its own: what the two tests above read."""
    found: dict[str, Any] = {
        f"{noise} {name}": differing(_fused.perturbed_matmul, noise, kind)
        for noise in NOISES
        for name, kind in KINDS.items()
    }  # fmt: skip
    cpu = torch.device("cpu")
    found["agrees"] = [_fused.is_kernel_exact(cpu, kind, *args) for args in NOISES.values() for kind in KINDS.values()]
    recipe = read_recipe(path, [*FULL, "model.compute_dtype=fp32", "estimator.eps=0.02"])
    found["step"] = [*stepped(recipe, _fused.perturbed_matmul), stepped(recipe, None)[0]]
    print(json.dumps(found))


# -- for a GPU


@interpreted
@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("noise", NOISES)
@pytest.mark.parametrize("capability", [80, 90])
def test_it_compiles_for_gpus_that_are_not_here(noise: str, kind: str, capability: int) -> None:
    """c z is rounded before it is added (no fused multiply-add but a float32 product's own), and shared memory suffices."""
    from triton import compile
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from zoedge.methods.noise._kernel import perturbed_matmul_kernel

    bits, group = (1, 32) if noise == "rademacher" else (16, 8)
    bm, bn, bk = _fused.TILE_SIZES[KINDS[kind].itemsize]
    fixed = dict(TWO=True, BIAS=True, BITS=bits, GROUP=group, BM=bm, BN=bn, BK=bk, INTERPRETED=False)
    types = dict.fromkeys(("x", "w", "bias", "y"), f"*{kind}") | dict.fromkeys("MNK", "i32")
    types |= {"table": f"*{kind}" if bits == 1 else "*fp32", "up": "fp32", "down": "fp32"}
    names = perturbed_matmul_kernel.arg_names
    made = compile(
        ASTSource(
            perturbed_matmul_kernel, {name: "constexpr" if name in fixed else types.get(name, "i64") for name in names},
            {(names.index(name),): value for name, value in fixed.items()},
        ),
        target=GPUTarget("cuda", capability, 32), options={"num_stages": 2, "enable_fp_fusion": False},
    )  # fmt: skip
    assert made.asm["cubin"] and made.metadata.shared <= 99 << 10
    assert (made.asm["ptx"].count("fma.rn") > 0) == (kind == "fp32")


@pytest.mark.gpu
@interpreted
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("noise", NOISES)
def test_a_gpus_weights_have_the_bits_of_drawing(noise: str, kind: str) -> None:
    assert differing(_fused.perturbed_matmul, noise, KINDS[kind], "cuda") == []
    assert _fused.is_kernel_exact(torch.device("cuda"), KINDS[kind], *NOISES[noise])


@pytest.mark.gpu
@interpreted
@pytest.mark.parametrize(("m", "n", "k"), [(1, 4096, 4096), (130, 257, 320), (2048, 1024, 4096)])
def test_a_gpus_product_is_the_product(m: int, n: int, k: int) -> None:
    """Many rows and tiles, bf16: within the rounding of the result (8 bits) of the same product of stored weights."""
    seeded = torch.Generator().manual_seed(1)
    x, w = (torch.randn(size, generator=seeded).to("cuda", torch.bfloat16) for size in ((2 * m, k), (n, k)))
    args = (8, SIGN_TABLE, x, w, None, 3 * 128, Key(1, 2, 3), (1e-2, -1e-2))
    found, wanted = _fused.perturbed_matmul(*args).float(), drawn(*args).float()
    assert (found - wanted).abs().max() <= 2**-7 * wanted.abs().max() + 1e-2 * math.sqrt(k) / 16


@pytest.mark.gpu
@interpreted
@pytest.mark.parametrize("source", ["llama", "opt"])
def test_a_gpus_step_by_the_kernel_is_a_step(recipe_file: Path, request: Any, source: str, tmp_path: Path) -> None:
    changes = ["model.device=cuda", "model.compute_dtype=fp32", f"model.source={request.getfixturevalue(source)}"]
    recipe = read_recipe(str(recipe_file), [*FULL, *changes])
    found, calls = stepped(recipe, _fused.perturbed_matmul)
    assert calls > 0 and found == pytest.approx(stepped(recipe, None)[0], rel=1e-4)


if __name__ == "__main__":
    main(sys.argv[1])

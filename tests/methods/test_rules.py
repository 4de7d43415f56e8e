"""Each update rule against its paper's recursion, written out in float64 numpy, for 50 steps.

`OWN` shares no code with zoedge/rules: cosines, powers and square roots as the libraries have them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch

from zoedge.core import engine
from zoedge.core import run as core_run
from zoedge.core.exact import bits16
from zoedge.core.memory import MemoryLog
from zoedge.core.parts import PART_FOLDERS, list_words, load_part
from zoedge.core.types import Key, Leaf, Part, Record

RULES = list_words(PART_FOLDERS["rule"])
STEPS, D = 50, 300
Array = np.ndarray
Update = Callable[[Array, list[Array], list[float], float, int], Array]


def sgd(**_: Any) -> Update:
    return lambda theta, z, g, lr, t: theta - lr * sum(w * d for w, d in zip(g, z))


def momentum(mu: float = 0.9) -> Update:
    m = np.zeros(D)

    def update(theta: Array, z: list[Array], g: list[float], lr: float, t: int) -> Array:
        nonlocal m
        m = mu * m + sum(w * d for w, d in zip(g, z))
        return theta - lr * m

    return update


def sign(scalar: bool = False) -> Update:
    def update(theta: Array, z: list[Array], g: list[float], lr: float, t: int) -> Array:
        if scalar:
            return theta - lr * sum(np.sign(w) * d for w, d in zip(g, z))
        return theta - lr * np.sign(sum(w * d for w, d in zip(g, z)))

    return update


def adam(beta1: float = 0.9, beta2: float = 0.999, eps: float = 1e-8) -> Update:
    m, v = np.zeros(D), np.zeros(D)

    def update(theta: Array, z: list[Array], g: list[float], lr: float, t: int) -> Array:
        nonlocal m, v
        estimate = sum(w * d for w, d in zip(g, z))
        m = beta1 * m + (1 - beta1) * estimate
        v = beta2 * v + (1 - beta2) * estimate**2
        return theta - lr * (m / (1 - beta1 ** (t + 1))) / (np.sqrt(v / (1 - beta2 ** (t + 1))) + eps)

    return update


def adamu(
    a: float = 0.5, b1: float = 0.1, b2: float = 0.01, warm: int = 1024, settled: float = 0.8, signed: bool = True,
    anneal: str = "cosine",
) -> Update:  # fmt: skip
    m, t2 = np.zeros(D), int(settled * STEPS)
    t1 = min(warm, t2 - 1)

    def value(end: float, phi: float, t: int) -> float:
        if t < t1:
            return 1.0
        t = min(t, t2)
        if anneal == "cosine":
            return end + (1 - end) * 0.5 * (1 + math.cos(math.pi * (t - t1) / (t2 - t1)))
        return 0.5 + 0.5 * math.cos(math.pi * (t - t1) / (STEPS - phi * (t - t1) * (STEPS - t2) / (t2 - t1)))

    def update(theta: Array, z: list[Array], g: list[float], lr: float, t: int) -> Array:
        nonlocal m
        alpha, beta1, beta2 = value(a, 0.1, t), value(b1, 1.0, t), value(b2, 1.5, t)
        dot, ddot = math.sqrt(alpha) * z[0], m + math.sqrt(1 - alpha) * z[1]
        u = beta1 * dot + (1 - beta1) * ddot
        v = beta2 * dot**2 + (1 - beta2) * ddot**2
        if g[0] != 0:
            m = u * (np.sign(g[0]) if signed else 1.0)
        return theta - lr * g[0] * u / np.sqrt(v + 1e-8)

    return update


def hizoo(a: float = 1e-6, least: float = 1e-4) -> Update:
    h = np.ones(D)

    def update(theta: Array, z: list[Array], g: list[float], lr: float, t: int) -> Array:
        nonlocal h
        moved = theta - lr * g[0] * z[0] / np.sqrt(h)
        h = np.maximum((1 - a) * h + a * abs(g[1]) * h * z[0] ** 2, least)
        return moved

    return update


OWN = {"sgd": sgd, "momentum": momentum, "sign": sign, "adam": adam, "adamu": adamu, "hizoo": hizoo}
CASES: list[tuple[str, dict[str, Any]]] = [
    *((rule, {}) for rule in RULES), ("momentum", {"mu": 0.5}), ("sign", {"scalar": True}),
    ("adam", {"beta1": 0.5, "beta2": 0.9}), ("adamu", {"warm": 5}), ("adamu", {"warm": 5, "signed": False}),
    ("adamu", {"warm": 5, "settled": 4 / 6, "anneal": "paper_fig1"}), ("hizoo", {"a": 1e-2}),
]  # fmt: skip


def test_every_rule_has_its_transcription() -> None:
    assert OWN.keys() == set(RULES), "write the paper's recursion here too"


@pytest.mark.parametrize(("rule", "options"), CASES, ids=lambda x: x if isinstance(x, str) else " ".join(map(str, x)))
def test_a_rule_is_its_papers_recursion(rule: str, options: dict[str, Any]) -> None:
    """50 steps on the engine, float32 and 16-bit coefficients, within 1e-4 of the float64 path's length.

    In Eq. 7's last phase b2 is 0: what is divided by is |z2|, which may be near 0, and errors grow by its inverse.
    """
    made, own = load_part("rule", rule)(lr=2.0**-7, **options), OWN[rule](**options)
    noise, rng = load_part("noise", "normal")(), np.random.default_rng(4)
    count = 1 if made.draws > 1 else 2
    value = torch.tensor(rng.normal(size=D), dtype=torch.float32)
    space = Flat(value)
    run = core_run.Run(9, STEPS, MemoryLog(), space, noise, made)  # type: ignore[arg-type]
    theta = value.double().numpy().copy()
    length = np.zeros(D)
    for t in range(STEPS):
        g = tuple(bits16(w) for w in rng.normal(size=count) * 3) if t != 11 else (0.0,) * count
        lr = bits16(2.0**-7 * (1 - t / 100))
        keys = [Key(9, t, q) for q in range(count * made.draws)]
        z = [noise.draw(key, space.leaves()[0]).double().numpy() for key in keys]
        engine.advance(run, Record(t, t, lr, g, ()))
        before = theta
        theta = own(theta, z, list(g), lr, t)
        length += abs(theta - before)
    off = abs(value.double().numpy() - theta) / length.max()
    assert off.max() < (2e-3 if "anneal" in options else 1e-4)
    assert length.min() > 1e-3, "it moved"


class Flat:
    """One leaf, no model."""

    width, lean = 1, True

    def __init__(self, value: torch.Tensor):
        self._leaves = [Leaf("x", 0, value, (Part("x", 0, (len(value),)),), len(value))]

    def leaves(self) -> Sequence[Leaf]:
        return self._leaves

    def add(self, leaf: Leaf, delta: torch.Tensor, decay: float) -> None:
        leaf.value.mul_(decay).add_(delta)

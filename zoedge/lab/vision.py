"""AS2P against GA and STP on a residual network: what do their losses cost in forward passes? (arXiv 2402.01621, Table 5)

The paper trains ResNet18/50/101/152 on CIFAR-10 and CIFAR-100, once each. Here: a residual network of 7,490 weights, all
trained, from a fixed random start, on scikit-learn's 1,797 digits of 8x8, all of them for training. Group norm stands for
batch norm, so that the loss is a function of weights and batch alone. The head sees all 16 places: with mean pooling GA's
loss fell from 2.30 to 2.19 only in 3,000 forward passes. AS2P has the paper's settings (eta_a 5, eta_b 5, window 10 %,
rho_end rho_0 / 10), but for rho_0. Step sizes are chosen here, as many for each method, on seeds that are not counted;
AS2P's is rho_0, which both probes and sizes its steps (1e-3 in the paper, for far larger networks). A batch is drawn with
replacement, the same at a step of a seed for all methods.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ..core.types import Natural, Positive, Record
from . import _race
from ._bench import ArraySpace, Claim, FunctionTask, Outcome, descend
from ._race import Parts, RaceResult, format_ratios, make_methods

CLASS_COUNT = 10
NORM_GROUPS = 2
PLACE_COUNT = 16  # 4x4, after the second block
STEP_SIZE_GRIDS = {"ga": (5e-4, 1e-3, 2e-3, 4e-3), "stp": (5e-3, 1e-2, 2e-2, 4e-2), "rho": (1e-2, 2e-2, 4e-2, 8e-2)}
MAX_EQUAL_RATIO = 1.25  # cost ratios up to which two methods count as equal


class ResidualNetwork:
    """A network of a stem, two blocks (the second has half the resolution) and a linear head.

    `logits` takes many copies of the weights at once: each is a group of a grouped convolution.
    """

    def __init__(self, width: int):
        w = width
        self.shapes = {
            "stem": (w, 1, 3, 3),
            "stem.norm": (2, w),
            "1.a": (w, w, 3, 3),
            "1.a.norm": (2, w),
            "1.b": (w, w, 3, 3),
            "1.b.norm": (2, w),
            "2.a": (2 * w, w, 3, 3),
            "2.a.norm": (2, 2 * w),
            "2.b": (2 * w, 2 * w, 3, 3),
            "2.b.norm": (2, 2 * w),
            "2.skip": (2 * w, w, 1, 1),
            "head": (CLASS_COUNT, PLACE_COUNT * 2 * w + 1),
        }

    def start(self) -> Tensor:
        """Return the initial weights: He's for convolutions, 1 and 0 for norms.

        The head is 0, so that all classes are equally likely.
        """
        rng = torch.Generator().manual_seed(0)
        values = []
        for name, shape in self.shapes.items():
            if name == "head":
                value = torch.zeros(shape)
            elif name.endswith("norm"):
                value = torch.tensor([[1.0], [0.0]]).expand(shape)
            else:
                value = torch.randn(shape, generator=rng) * math.sqrt(2 / math.prod(shape[1:]))
            values.append(value.reshape(-1))
        return torch.cat(values)

    def logits(self, points: Tensor, images: Tensor) -> Tensor:
        """Return logits [copies, n, 10] for weights [copies, P] and images [n, 8, 8]."""
        copies = len(points)
        parts = torch.split(points, [math.prod(shape) for shape in self.shapes.values()], dim=1)
        p = {name: part.reshape(copies, *shape) for (name, shape), part in zip(self.shapes.items(), parts)}

        def conv(x: Tensor, name: str, stride: int = 1) -> Tensor:
            w = p[name]
            return F.conv2d(x, w.flatten(0, 1), stride=stride, padding=w.shape[-1] // 2, groups=copies)

        def layer(x: Tensor, name: str, stride: int = 1) -> Tensor:
            scale, shift = (p[f"{name}.norm"][:, i].flatten() for i in (0, 1))
            return F.group_norm(conv(x, name, stride), NORM_GROUPS * copies, scale, shift)

        x = images[:, None].expand(-1, copies, -1, -1)
        x = F.relu(layer(x, "stem"))
        x = F.relu(layer(F.relu(layer(x, "1.a")), "1.b") + x)
        x = F.relu(layer(F.relu(layer(x, "2.a", 2)), "2.b") + conv(x, "2.skip", 2))
        features = x.reshape(len(images), copies, -1).transpose(0, 1)
        return torch.baddbmm(p["head"][:, None, :, -1], features, p["head"][:, :, :-1].transpose(1, 2))


@dataclass(frozen=True)
class Vision:
    """The experiment, and its options.

    Attributes:
        passes: forward passes of a run.
        width: the channels of the network.
        eps: GA's radius.
        window: the share of a run that a smoothed loss averages.
        tune, seeds: how many seeds choose step sizes, and how many count.
    """

    passes: Natural = 5000
    batch: Natural = 64
    width: Natural = 8
    eps: Positive = 1e-3
    window: Positive = 0.05
    tune: Natural = 1
    seeds: Natural = 3

    def run(self, seed: int) -> Outcome:
        """Run the experiment, and return its numbers, the paper's claims beside them, and a figure."""
        from sklearn.datasets import load_digits

        digits = load_digits()
        images = torch.tensor(digits.images / 16.0, dtype=torch.float32)
        labels = torch.tensor(digits.target)
        network = ResidualNetwork(self.width)
        start = network.start()

        def trial(parts: Parts, steps: int, seed: int) -> Iterator[Record]:
            @torch.no_grad()
            def loss(points: Tensor, step: int) -> Tensor:
                chosen = np.random.default_rng((seed, step)).integers(len(labels), size=self.batch)
                logits = network.logits(points, images[chosen]).double()
                wanted = labels[chosen].expand(len(points), -1)
                return F.cross_entropy(logits.transpose(1, 2), wanted, reduction="none").mean(1)

            return descend(ArraySpace(start), FunctionTask(loss, stochastic=True), *parts, steps, seed)

        tune, seeds = _race.split_seeds(seed, self.tune, self.seeds)
        racers = _race.run_race(
            make_methods(self.eps, 5.0, **STEP_SIZE_GRIDS), trial, self.passes, self.window, tune, seeds
        )
        numbers = {"weights": len(start), **_race.collect_numbers(racers)}
        return Outcome(numbers, make_claims(racers), lambda: _race.draw_race(racers, f"digits, {len(start):,} weights"))


def make_claims(racers: dict[str, RaceResult]) -> list[Claim]:
    """Return the paper's claims, compared with this race."""
    constant, cosine = _race.compute_median_costs(racers), _race.compute_median_costs(racers, "GA cosine")
    pairs = {"AS2P_sign": _race.compute_median_costs(racers, "AS2P")["AS2P_sign"], "GA_sign": constant["GA_sign"]}
    shares = "/".join(f"{100 * share:.0f}" for share in _race.BUDGET_SHARES)
    return [
        Claim(
            "AS2P reaches GA's losses in fewer forward passes",
            f"{format_ratios(constant['AS2P'])} of GA constant's passes ({format_ratios(cosine['AS2P'])} of GA "
            "cosine's), for its losses "
            f"after {shares} % of the run",
            max(constant["AS2P"]) < 1,
        ),
        Claim(
            "AS2P needs fewer forward passes than STP",
            f"AS2P {format_ratios(constant['AS2P'])}, STP {format_ratios(constant['STP'])} of GA constant's "
            "(never for both is a tie)",
            constant["AS2P"] != constant["STP"]
            and all(a < b or a == b == math.inf for a, b in zip(constant["AS2P"], constant["STP"])),
        ),
        Claim(
            "GA constant needs fewer forward passes than GA cosine",
            f"{format_ratios(cosine['GA constant'])} of GA cosine's",
            max(cosine["GA constant"]) < 1,
        ),
        Claim(
            "Rademacher noise does as well as normal noise",
            f"AS2P_sign {format_ratios(pairs['AS2P_sign'])} of AS2P's, GA_sign "
            f"{format_ratios(pairs['GA_sign'])} of GA constant's",
            all(1 / MAX_EQUAL_RATIO <= ratio <= MAX_EQUAL_RATIO for ratios in pairs.values() for ratio in ratios),
        ),
    ]

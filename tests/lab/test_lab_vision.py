"""The race's arithmetic on made-up curves, the network, and the experiment at a small size."""

import io
import json

import numpy as np
import pytest
import torch

from zoedge.core.types import Record
from zoedge.errors import DivergedError
from zoedge.lab import _race
from zoedge.lab._race import (
    LossCurve,
    Method,
    RaceResult,
    compute_cost_ratios,
    compute_median_costs,
    measure_curve,
    smooth_losses,
)
from zoedge.lab.vision import ResidualNetwork, Vision

SMALL = Vision(passes=24, batch=4, width=4, tune=1, seeds=2, window=0.2)


def curve(*losses):
    return LossCurve(10 * np.arange(1, len(losses) + 1), np.array(losses, float))


def record(step, *losses):
    return Record(step, step, 1.0, (0.0,), losses)


def test_ratios_of_known_curves():
    base = curve(8, 7, 6, 5, 4, 3, 2, 1)  # 1, 3, 5 and 7 at 100, 75, 50 and 25 % of 80 passes
    found = compute_cost_ratios(
        {"base": base, "equal": base, "at once": curve(0), "never": curve(9, 9), "half": curve(7, 5, 3)}, "base"
    )
    assert found["base"] == found["equal"] == [1, 1, 1, 1]
    assert found["at once"] == [10 / 80, 10 / 60, 10 / 40, 10 / 20]
    assert found["never"] == [np.inf] * 4
    assert found["half"] == [np.inf, 0.5, 0.5, 0.5]


def test_a_baseline_that_rises_again_is_taken_at_its_lowest():
    base = curve(4, 1, 2, 3)
    assert compute_cost_ratios({"base": base, "slow": curve(4, 4, 4, 1)}, "base")["slow"] == [2, 2, 2, 0.25 * 4]


def test_costs_are_medians_over_seeds_with_never_as_infinite():
    base, slow, never = curve(2, 1), curve(3, 3, 3, 1), curve(3)
    racers = {"base": RaceResult(1, False, [base] * 3), "mixed": RaceResult(1, False, [base, slow, never])}
    assert compute_median_costs(racers, "base")["mixed"][0] == 2
    racers["mixed"] = RaceResult(1, False, [base, never, never])
    assert compute_median_costs(racers, "base")["mixed"][0] == np.inf
    assert _race.encode_infinite([0.5, np.inf, np.nan]) == [0.5, None, None]


def test_smoothing_starts_where_the_window_is_full():
    found = smooth_losses(np.array([1.0, 3.0, 5.0, 7.0]), 2, 3)
    assert found.losses.tolist() == [2, 4, 6]
    assert found.passes.tolist() == [6, 9, 12]
    assert smooth_losses(np.array([1.0, np.nan, 1.0]), 1, 2).losses.tolist() == [1, np.inf, 1]


def test_the_loss_of_a_step_is_the_mean_of_its_two_sided_losses():
    found = measure_curve((), lambda parts, steps, seed: (record(i, 1.0, 3.0, 99.0) for i in range(steps)), 9, 0.1, 0)
    assert found.losses.tolist() == [2, 2, 2]
    assert found.passes.tolist() == [3, 6, 9]


def test_a_run_that_diverges_is_infinite_from_there():
    def trial(parts, steps, seed):
        yield record(0, 1.0, 1.0)
        raise DivergedError("")

    assert measure_curve((), trial, 6, 0.1, 0).losses.tolist() == [1, np.inf, np.inf]


@pytest.mark.parametrize("best, edge", [(2.0, False), (3.0, True)])
def test_race_takes_the_size_of_the_lowest_final_loss_of_the_tuning_seeds(best, edge):
    asked = []

    def trial(size, steps, seed):
        asked.append((size, seed))
        return (record(i, abs(size - best), abs(size - best)) for i in range(steps))

    racer = _race.run_race({"a": Method(lambda size: size, (1.0, 2.0, 3.0))}, trial, 8, 0.5, [0], [5, 6])["a"]
    assert (racer.size, racer.edge, racer.final()) == (best, edge, [0, 0])
    assert {seed for size, seed in asked if size != best} == {0}


def test_network_copies_do_not_see_each_other():
    network = ResidualNetwork(4)
    points = torch.stack([network.start() + 0.1 * torch.randn(len(network.start())) for _ in range(3)])
    images = torch.rand(5, 8, 8)
    together = network.logits(points, images)
    assert together.shape == (3, 5, 10)
    for point, logits in zip(points, together):
        torch.testing.assert_close(network.logits(point[None], images)[0], logits)


def test_network_starts_undecided_and_images_do_not_see_each_other():
    network = ResidualNetwork(4)
    images = torch.rand(5, 8, 8)
    assert network.logits(network.start()[None], images).abs().max() == 0
    point = network.start()[None] + 0.1
    torch.testing.assert_close(network.logits(point, images)[:, :2], network.logits(point, images[:2]))


def test_small_run_has_every_method_and_repeats():
    outcome = SMALL.run(1)
    assert {"GA constant", "GA cosine", "GA_sign", "STP", "AS2P", "AS2P_sign"} < set(outcome.numbers)
    assert outcome.numbers["GA constant"]["cost against GA constant"] == [1, 1, 1, 1]
    assert json.dumps(outcome.numbers) == json.dumps(SMALL.run(1).numbers) != json.dumps(SMALL.run(2).numbers)
    assert all(type(claim.holds) is bool for claim in outcome.claims)
    made = io.BytesIO()
    outcome.draw().savefig(made, format="svg")
    assert b"<svg" in made.getvalue()

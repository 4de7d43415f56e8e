"""The six functions, and the experiment on them at a small size."""

import io
import json

import numpy as np
import pytest

from zoedge.core.parts import list_words
from zoedge.lab._functions import FUNCTIONS
from zoedge.lab.testfunctions import RULE_NAMES, Testfunctions, find_first

SMALL = Testfunctions(passes=12, tune=1, seeds=2)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_minimum_is_zero_and_lowest(name):
    function = FUNCTIONS[name]
    minimum = np.array(function.minimum, float)
    around = minimum + np.random.default_rng(0).normal(size=(1000, 2))
    assert function(minimum) == 0
    assert (function(around) > 0).all()
    assert function(np.array(function.start, float)) > 1


def test_hit_is_the_number_of_steps():
    assert find_first(np.array([False, False, True, False])) == 2
    assert find_first(np.array([True])) == 0
    assert find_first(np.array([False])) == np.inf


def test_small_run_has_every_method_and_repeats():
    outcome = SMALL.run(1)
    for found in (outcome.numbers[name] for name in FUNCTIONS):
        assert {RULE_NAMES.get(word, word) for word in list_words("methods.rules")} | {"STP", "S2P", "AS2P"} == set(
            found
        )
        assert (found["MeZO"]["passes a step"], found["STP"]["passes a step"]) == (2, 3)
    assert json.dumps(outcome.numbers) == json.dumps(SMALL.run(1).numbers) != json.dumps(SMALL.run(2).numbers)
    assert all(type(claim.holds) is bool for claim in outcome.claims)
    made = io.BytesIO()
    outcome.draw().savefig(made, format="svg")
    assert b"<svg" in made.getvalue()

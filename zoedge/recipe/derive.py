"""This module fills in what a recipe leaves open and its other settings decide. Only `derive` does so, and it says why."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import replace
from typing import Any

from ..core.parts import PART_FOLDERS, load_part
from .recipe import TRUNK_KEY, WATCHDOG_KEY, Derived, part_name
from .sections import WatchdogOptions

AUTO_WATCHDOG = WatchdogOptions(rise=1.5, rewinds=8)

AUTO_TRUST = 0.03  # docs/auto.md says what it was chosen by


# after a closed-form start: a gain of .003 to .005 nats in 250 steps at lr .1 and batch 32, a loss at .5 (docs/lab-notes.md)
STEPS_AFTER_START, BATCH_AFTER_START, LR_AFTER_START = 250, 32, 0.1


def derive(
    parts: dict[str, Any],
    auto: set[str],
    given: Collection[str],
    rule_keys: Collection[str],
    estimator_keys: Collection[str],
) -> list[Derived]:
    """Fill in what the recipe leaves open, in `parts` and `auto`.

    Args:
        parts: the sections and parts by key; one that has a mistake is missing or None. Changed in place.
        auto: the dotted keys whose value is 'auto', such as 'rule.lr'. Changed in place.
        given: the keys that are written on the recipe's outermost level.
        rule_keys, estimator_keys: the options of these two that are written in the recipe.

    Returns: what was filled in, each with its reason, in the order of the recipe's sections.
    """
    return [
        *begin_in_closed_form(parts, auto, given),
        *fix_only_values(parts, auto),
        *count_directions(parts, auto),
        *leave_trunk_type(parts, auto),
        *take_known_radius(parts, auto, estimator_keys),
        *take_known_rate(parts, auto, rule_keys),
        *(Derived(key, "auto", "no number is written: it is chosen before the first step") for key in sorted(auto)),
        *decay_chosen_rate(parts, auto, rule_keys),
        *guard_chosen_rate(parts, auto),
        *choose_by_validation(parts),
        *drop_peft_export(parts),
    ]


def begin_in_closed_form(parts: dict[str, Any], auto: set[str], given: Collection[str]) -> Iterator[Derived]:
    """Begin with the closed form, and take few small steps, where no space is written and the rows have right answers."""
    space, task, train = parts.get("space"), parts.get("task"), parts.get("train")
    if "space" in given or not (space and task and train) or not task.has_answers or ":" in task.objective:
        return
    parts["space"] = replace(space, start="probe")
    yield Derived(
        "space.start", "probe", "no space is written: one pass over the rows learns more than thousands of steps"
    )
    is_free = {"noise", "estimator", "rule"}.isdisjoint(given) and task.objective == "loss"
    few = {"steps": STEPS_AFTER_START} | ({"batch": BATCH_AFTER_START} if is_free else {})
    few = {key: value for key, value in few.items() if key not in train.model_fields_set}
    parts["train"] = train.model_copy(update=few)
    yield from (Derived(f"train.{key}", value, "space.start: probe has learnt most") for key, value in few.items())
    if is_free:
        parts["estimator"] = load_part("estimator", "gauss_newton")()
        parts["rule"] = replace(parts["rule"], lr=LR_AFTER_START, schedule="linear")
        auto -= {"estimator.eps", "rule.lr"}
        reason = "after space.start: probe it gains a little without a search, where others gain nothing"
        yield Derived("estimator", "gauss_newton", reason)
        yield Derived("rule", {"lr": LR_AFTER_START, "schedule": "linear"}, reason)


def fix_only_values(parts: dict[str, Any], auto: set[str]) -> Iterator[Derived]:
    """Give an 'auto' option the one value that goes with the other parts, where there is only one."""
    for path in sorted(auto):
        kind, _, option = path.partition(".")
        owners = [key for key in PART_FOLDERS if parts.get(key) and parts[key].only_with.get(path)]
        if owners and parts.get(kind) is not None:
            value = parts[owners[0]].only_with[path][0]
            parts[kind] = replace(parts[kind], **{option: value})
            auto.discard(path)
            yield Derived(path, value, f"{owners[0]}: {part_name(parts[owners[0]])} goes with no other value")


def leave_trunk_type(parts: dict[str, Any], auto: set[str]) -> Iterator[Derived]:
    """The type of the lower blocks' products is chosen before the run, as a number that is 'auto' is."""
    if (model := parts.get("model")) is not None and model.trunk_dtype == "auto":
        auto.add(TRUNK_KEY)
        yield from ()


def count_directions(parts: dict[str, Any], auto: set[str]) -> Iterator[Derived]:
    """The options of a task decide in how many directions a space can move their logits."""
    space, task = parts.get("space"), parts.get("task")
    if "space.rank" in auto:
        auto.discard("space.rank")
        if space and task and task.labels:
            rank = max(1, len(task.labels) - 1)
            parts["space"] = replace(space, rank=rank)
            yield Derived("space.rank", rank, f"{len(task.labels)} options differ in so many directions")


def take_known_radius(parts: dict[str, Any], auto: set[str], estimator_keys: Collection[str]) -> Iterator[Derived]:
    """A space whose values have the size of logits in every model has a radius that needs no search."""
    space, estimator, task = parts.get("space"), parts.get("estimator"), parts.get("task")
    if not (space and estimator and task and space.known_steps) or estimator.radius_option != "eps":
        return
    if "estimator.eps" in auto or "eps" not in estimator_keys:
        eps, _ = space.known_steps["loss" if task.objective == "loss" else "goal"]
        auto.discard("estimator.eps")
        parts["estimator"] = replace(estimator, eps=eps)
        reason = f"space: {part_name(space)}: its values have the size of logits, whatever the model is"
        yield Derived("estimator.eps", eps, reason)


def take_known_rate(parts: dict[str, Any], auto: set[str], rule_keys: Collection[str]) -> Iterator[Derived]:
    """An estimator whose steps have the size of the problem's own curvature needs no search of a learning rate."""
    estimator, rule = parts.get("estimator"), parts.get("rule")
    if "rule.lr" in auto and rule and estimator and estimator.known_lr is not None:
        reason = f"estimator: {part_name(estimator)} scales its own steps"
        auto.discard("rule.lr")
        parts["rule"] = replace(rule, lr=estimator.known_lr)
        yield Derived("rule.lr", estimator.known_lr, reason)
        if "schedule" not in rule_keys:
            parts["rule"] = replace(parts["rule"], schedule="linear")
            yield Derived("rule.schedule", "linear", reason)


def decay_chosen_rate(parts: dict[str, Any], auto: set[str], rule_keys: Collection[str]) -> Iterator[Derived]:
    """Let a learning rate that short trials choose fall to zero over the run, if the recipe writes no schedule."""
    if "rule.lr" in auto and parts.get("rule") and "schedule" not in rule_keys:
        parts["rule"] = replace(parts["rule"], schedule="linear")
        yield Derived(
            "rule.schedule",
            "linear",
            "rule.lr is auto: a size that suits the first steps is too large for the last ones",
        )


def guard_chosen_rate(parts: dict[str, Any], auto: set[str]) -> Iterator[Derived]:
    """Guard a run whose learning rate short trials choose, if the recipe says nothing of the watchdog."""
    train, rule, estimator = parts.get("train"), parts.get("rule"), parts.get("estimator")
    if "rule.lr" not in auto or not train or "watchdog" in train.model_fields_set:
        return
    guard = AUTO_WATCHDOG
    if estimator and estimator.slope and rule and rule.linear:
        guard = AUTO_WATCHDOG.model_copy(update={"trust": AUTO_TRUST})
    parts["train"] = train.model_copy(update={"watchdog": guard})
    auto.add(WATCHDOG_KEY)
    reason = "rule.lr is auto: short trials choose it, and a long run may not bear it"
    yield Derived(WATCHDOG_KEY, guard.model_dump(exclude_none=True), reason)


def choose_by_validation(parts: dict[str, Any]) -> Iterator[Derived]:
    """Deliver the step of the lowest validation loss where there are validation rows and the recipe does not choose."""
    data, looks = parts.get("data"), parts.get("eval")
    if data and looks and data.valid is not None and "select" not in looks.model_fields_set:
        parts["eval"] = looks.model_copy(update={"select": "best"})
        yield Derived(
            "eval.select", "best", "there are validation rows: what is delivered is never worse on them than the start"
        )


def drop_peft_export(parts: dict[str, Any]) -> Iterator[Derived]:
    """Drop the default export, which is an adapter, for a space that has none."""
    space, output = parts.get("space"), parts.get("output")
    if not (space and output) or space.adapter or "export" in output.model_fields_set or "peft" not in output.export:
        return
    kept = [kind for kind in output.export if kind != "peft"]
    parts["output"] = output.model_copy(update={"export": kept})
    yield Derived("output.export", kept, f"space: {part_name(space)} has no adapter that PEFT could read")

"""This module has the rules about two settings that are right by themselves and wrong together: one function for each.

A rule yields the key that it refuses and a sentence. A part or section that already has a mistake of its own is missing
from `parts`, or None there; the rules about it are then silent.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from .parts import incompatible_parts
from .recipe import part_name
from .strict_yaml import KeyPath

Refusals = Iterator[tuple[KeyPath, str]]


def merged_export_needs_a_space_that_merges(parts: dict[str, Any]) -> Refusals:
    """Refuse export: merged for a space that adds something to the model, but changes none of its weights."""
    space, output = parts.get("space"), parts.get("output")
    if space and output and "merged" in output.export and not space.merges:
        yield ("output", "export"), f"output.export: a {space.title} changes no weight: nothing to merge"


def best_step_needs_validation_rows(parts: dict[str, Any]) -> Refusals:
    """Refuse select: best without rows on which the best step could be chosen."""
    data, looks = parts.get("data"), parts.get("eval")
    if looks and looks.select == "best" and data and data.valid is None:
        yield ("eval", "select"), "eval.select: best is chosen on validation rows - write data.valid: {split: 0.1}"


def drift_limit_needs_looks(parts: dict[str, Any]) -> Refusals:
    """Refuse a limit of the drift where no look measures it, or no step is chosen by looks."""
    data, looks, task = parts.get("data"), parts.get("eval"), parts.get("task")
    if not looks or looks.drift is None:
        return
    if task and task.head != "CausalLM":
        yield (
            ("eval", "drift"),
            f"eval.drift: a model that fills masks has none - leave it out with task {part_name(task)}",
        )
    elif data and data.valid is None:
        yield ("eval", "drift"), "eval.drift: the drift is measured on validation rows - write data.valid: {split: 0.1}"
    elif looks.select != "best":
        yield ("eval", "drift"), "eval.drift: limits which step is the best - write eval.select: best"


def format_needs_its_task(parts: dict[str, Any]) -> Refusals:
    """Refuse a format of rows that the task does not read."""
    task, data = parts.get("task"), parts.get("data")
    if task and data and data.format not in ("auto", *task.formats):
        home = "lm" if data.format == "text" else "chat"
        yield ("data", "format"), f"data.format: {data.format} goes with task: {home}, not {part_name(task)}"


def schedule_needs_a_value_at_every_step(parts: dict[str, Any]) -> Refusals:
    """Refuse a rule whose own schedules have no value somewhere in a run of train.steps."""
    rule, train = parts.get("rule"), parts.get("train")
    if rule and train:
        try:
            rule.check(train.steps)
        except ValueError as e:
            yield ("rule", str(e).partition(":")[0]), f"rule.{e}"


def parts_go_only_with_what_they_name(parts: dict[str, Any]) -> Refusals:
    """Refuse a part beside another one, or beside an option, that its class does not go with."""
    for key, other, allowed, present in incompatible_parts(parts):
        yield (key,), f"{key}: {part_name(parts[key])} goes only with {other}: {allowed}, not {present}"


def peft_export_needs_an_adapter(parts: dict[str, Any]) -> Refusals:
    """Refuse export: peft for a space that has no adapter; where export is not written, `derive` has removed peft."""
    space, output = parts.get("space"), parts.get("output")
    if space and output and "peft" in output.export and not space.adapter:
        what = f"space {part_name(space)} has no adapter, and PEFT no format for it"
        yield ("output", "export"), f"output.export: {what} - write [merged], or []"


def start_needs_answers(parts: dict[str, Any]) -> Refusals:
    """Refuse a start that is fitted to right answers for a task whose rows have none."""
    space, task = parts.get("space"), parts.get("task")
    if space and task and space.wants_start and not space.starts_at_base and not task.has_answers:
        yield (
            ("space", "start"),
            f"space.start: probe is fitted to right answers, and rows of task {part_name(task)} have none: on plain text it "
            "learns little but how often words occur",
        )


def aligned_space_needs_options(parts: dict[str, Any]) -> Refusals:
    """Refuse a space of what moves the options' logits for a task without options, or with fewer than its rank needs."""
    space, task = parts.get("space"), parts.get("task")
    if not (space and task and space.starts_at_base):
        return
    if not task.labels:
        yield (
            ("space",),
            f"space: {part_name(space)} moves the logits of options: it goes with classify and mlm, not {part_name(task)}",
        )
    elif space.rank >= len(task.labels):
        most = len(task.labels) - 1
        yield (
            ("space", "rank"),
            f"space.rank: {space.rank}, where {most + 1} options differ in {most} directions - leave it out",
        )


def slopes_need_a_differentiable_space(parts: dict[str, Any]) -> Refusals:
    """Refuse an estimator that differentiates for a space that holds no tangents."""
    space, estimator = parts.get("space"), parts.get("estimator")
    if space and estimator and estimator.differentiates and not space.differentiable:
        yield (
            ("estimator",),
            f"estimator: {part_name(estimator)} differentiates adapters and virtual tokens, not space: {part_name(space)} - "
            "write estimator: two_sided",
        )


PAIR_RULES: list[Callable[[dict[str, Any]], Refusals]] = [
    merged_export_needs_a_space_that_merges,
    best_step_needs_validation_rows,
    drift_limit_needs_looks,
    format_needs_its_task,
    schedule_needs_a_value_at_every_step,
    parts_go_only_with_what_they_name,
    peft_export_needs_an_adapter,
    start_needs_answers,
    aligned_space_needs_options,
    slopes_need_a_differentiable_space,
]

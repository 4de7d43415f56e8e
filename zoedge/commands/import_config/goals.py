"""This module refuses configurations of another kind of training, which a recipe of answers would silently replace."""

from __future__ import annotations

from ...errors import UsageError
from ...recipe.sentences import format_value
from .source import ConfigConverter

GOALS = {  # what is trained for, and the way out
    "preference": (
        "is training on preferences between answers",
        "To train on the chosen answers alone, which is another goal, write them as rows of prompt and completion.",
    ),
    "reward": (
        "is training for a reward of sampled answers",
        "A recipe has that as task: generate with task.objective: module:function, a reward in Python (docs/reward.md).",
    ),
    "scores": (
        "is training of a model that scores answers",
        "A recipe trains one that writes or chooses them (docs/tasks.md).",
    ),
    "distillation": (
        "is training on the probabilities of a teacher",
        "To train on its texts alone, which is another goal, write them as rows of prompt and completion.",
    ),
    "pictures": (
        "is training on pictures, sound or video",
        "A recipe trains on text alone.",
    ),
    "diffusion": (
        "is training of a diffusion model",
        "A recipe trains models that predict the next token (or fill a mask, with task: mlm).",
    ),
    "scratch": (
        "is training from random weights",
        "A recipe trains a model that can do something already: name one in model.source.",
    ),
    "no training": (
        "is no training",
        "Name the configuration of a training.",
    ),
}
GOAL_BY_WORD = {  # of methods, stages and types of data, in whatever tool
    **dict.fromkeys(("dpo", "ipo", "kto", "orpo", "simpo", "cpo", "bco", "nca", "apo", "xpo", "pair"), "preference"),
    **dict.fromkeys(
        ("grpo", "gdpo", "gspo", "dapo", "ppo", "rloo", "ebft", "online_dpo", "nash_md", "reinforce"), "reward"
    ),
    **dict.fromkeys(("rm", "reward", "bradley_terry", "stepwise_supervised", "prm"), "scores"),
    **dict.fromkeys(("kd", "gkd", "distillation"), "distillation"),
}


def refuse(s: ConfigConverter, key: str, value: object, goal: str) -> None:
    """Raise UsageError: the configuration is of another goal, or of no training. goal: a key of GOALS."""
    what, way_out = GOALS[goal]
    shown = value if isinstance(value, str) else format_value(value)
    raise UsageError(
        f"{s.where}: {key}: {shown}: this {what}, and import-config does not make a recipe of that. {way_out}"
    )


def refuse_keys(s: ConfigConverter, goals: dict[str, str]) -> None:
    """Raise UsageError if a key is set, and not to false or 0, that only another goal has. goals: key -> its goal."""
    for key, goal in goals.items():
        if s.is_set(key) and (value := s.left[key]) not in (False, 0):
            refuse(s, key, value, goal)


def refuse_word(s: ConfigConverter, key: str, value: object) -> None:
    """Raise UsageError if a method's or data set's name is that of another goal, such as dpo or bradley_terry.chat."""
    word = str(value).lower().partition(".")[0].partition(":")[0]
    if word in GOAL_BY_WORD:
        refuse(s, key, value, GOAL_BY_WORD[word])

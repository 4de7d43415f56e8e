"""The sections of a recipe whose fields are settings of the run itself: model, data, train, eval, log and output."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator


def check_folder_name(value: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", value):
        raise ValueError("a name: letters, digits, '.', '_' and '-', at most 64, a letter or a digit first")
    return value


def check_split_size(value: int | float) -> int | float:
    if not (value >= 1 if isinstance(value, int) else 0 < value < 1):
        raise ValueError("a number of rows (200) or a share of them (0.1)")
    return value


RunName = Annotated[str, AfterValidator(check_folder_name)]

Seed = Annotated[int, Field(ge=0, lt=2**64)]


class Section(BaseModel):
    """A table of the recipe. A validator's ValueError says what the value should have been: "X is not ..."."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, protected_namespaces=())


SIZE_PATTERN = re.compile(r"[0-9]+(\.[0-9]+)? ?[KMG]i?B")


def check_max_memory(value: dict[str, str] | None) -> dict[str, str] | None:
    for device, size in (value or {}).items():
        if device not in ("cuda", "cpu") or not SIZE_PATTERN.fullmatch(size):
            raise ValueError("how much of the weights a device may hold: {cpu: 2GB}, or {cuda: 6GB, cpu: 16GB}")
    return value


class Model(Section):
    """Which base, and how it is held and computed.

    source: a folder, a packaged model, or a hub id. revision: the hub's commit, branch or tag. quantization: how the base
    is held; none: as it is stored. double_quant: the 4-bit scales are quantised too. compute_dtype: auto is fp32 on a CPU,
    and bf16 or fp16 on a GPU. device: auto is a GPU if there is one. threads: of the CPU; the library's choice, if not told.
    max_memory: how much of the weights the devices may hold ({cpu: 2GB}); blocks beyond it stay on the disk, and are read
    once a forward, for all its points: the lowest ones, which a step does not need where only upper ones are trained.
    """

    source: str
    revision: str | None = None
    quantization: Literal["nf4", "fp4", "int8", "none"] = "nf4"
    double_quant: bool = True
    compute_dtype: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    device: Literal["auto", "cpu", "cuda"] = "auto"
    threads: int | None = Field(None, ge=1, le=1024)
    max_memory: Annotated[dict[str, str] | None, AfterValidator(check_max_memory)] = None

    @model_validator(mode="after")
    def whole(self) -> Model:
        if self.max_memory is not None and self.quantization != "none":
            raise ValueError(
                "max_memory: a quantised base is held whole. Write quantization: none, or leave max_memory out"
            )
        return self


class Split(Section):
    """So many rows (or that share of them), taken by a hash of their text: equal texts never stand on both sides.

    split: a number of rows (200) or a share of them (0.1).
    """

    split: Annotated[int | float, AfterValidator(check_split_size)]


class Data(Section):
    """Which rows. train, valid, test: a .jsonl, .json, .csv, .parquet or .txt file, a folder with train.jsonl, valid.jsonl
    and test.jsonl, a packaged text, a hub id (ORG/SET:SPLIT), or FOLDER:NAME of a dataset_info.json.

    format: what a row is, told by its keys if auto; to be said where rows have the keys of two (task chat or lm).
    fields: the names that the task uses -> those of the file. per_class: so many rows of each label, drawn by the run's
    seed, of train and of a split valid (few-shot). without: rows whose field is that text are left out ({label: "-1"}).
    limit: at most so many training rows, drawn by their content. max_length: tokens of a row at most. on_overflow: what
    becomes of longer ones. skip_bad_lines: lines that cannot be read are dropped and counted, not refused.
    """

    train: str
    valid: str | Split | None = None
    test: str | Split | None = None
    format: Literal["auto", "messages", "sharegpt", "alpaca", "completions", "text"] = "auto"
    fields: dict[str, str] = {}
    without: dict[str, str] = {}
    limit: int | None = Field(None, ge=1)
    per_class: int | None = Field(None, ge=1)
    max_length: int = Field(512, ge=2)
    on_overflow: Literal["error", "truncate", "drop"] = "error"
    skip_bad_lines: bool = False


class WatchdogOptions(Section):
    """What guards a run. clip: |g| is at most so many times the median of its last 200; 0: no limit.

    factor, patience, rewinds: where the loss is over factor times its best (means of `patience` steps) for `patience` steps
    in a row, or not finite for 8, the run goes back to its best logged state with half the lr: `rewinds` times at most, then
    it stops.
    rise: also where the mean of `patience` losses is over so many times the lowest such mean; off, if not told.
    trust: no step promises (lr g^2) to take more than that share off its loss: |g| is clipped there; off, if not told.
    For estimators of one slope and rule sgd.
    """

    clip: float = Field(10.0, ge=0)
    factor: float = Field(3.0, gt=1)
    patience: int = Field(50, ge=1)
    rewinds: int = Field(2, ge=0, le=64)
    rise: float | None = Field(None, gt=1)
    trust: float | None = Field(None, gt=0)


class Train(Section):
    """How long. steps: of the run. batch: rows of data a step. rows: token rows in one forward; a step with more points
    than fit takes several.

    threads: for the steps, once the lower layers are computed. Small steps on a machine that has other work want 1.
    watchdog: {} guards the run with the defaults, null does not; if not told, it is on where rule.lr is auto.
    timeout: seconds to wait for another worker, where several share the steps (1800, if not told).
    """

    steps: int = Field(6000, ge=1, lt=2**31)
    batch: int = Field(16, ge=1)
    rows: int = Field(2048, ge=1)
    threads: int | None = Field(None, ge=1, le=1024)
    watchdog: WatchdogOptions | None = None
    timeout: float | None = Field(None, gt=0)


class Curvature(Section):
    """tr H along the way (FlatZero). every, rows, directions, delta: every so many steps, over `rows` training rows,
    `directions` normal ones of radius delta.

    It costs 1 + 2 * directions forward passes of the rows. estimator: paper is the paper's, which the gradient drowns.
    """

    every: int = Field(1000, ge=1)
    directions: int = Field(16, ge=1)
    delta: float = Field(1e-2, gt=0)
    rows: int = Field(256, ge=1)
    estimator: Literal["antithetic", "paper"] = "antithetic"


class Eval(Section):
    """How often to look. every: steps between looks at the validation rows. at_start: score the base alone before the run.
    calibrate: unlabelled training rows from which the label bias is taken. curvature: off.

    select: the step that is delivered and scored at the end: the last, or the one of the lowest validation loss.
    """

    every: int = Field(250, ge=1)
    select: Literal["last", "best"] = "last"
    at_start: bool = True
    calibrate: int = Field(256, ge=1)
    curvature: Curvature | None = None


TrackerName = Literal["aim", "clearml", "comet_ml", "dvclive", "mlflow", "swanlab", "tensorboard", "trackio", "wandb"]


class LogOptions(Section):
    """The log. sync_every: steps a sync to the disk. hash_every: steps between hashes of the state. trackers: who else is
    told of losses and scores (accelerate's).
    """

    sync_every: int = Field(1, ge=1, le=4096)
    hash_every: int = Field(100, ge=1, lt=2**32)
    trackers: list[TrackerName] = []


class Output(Section):
    """Where runs go, and what to write at the end. dir: runs lie below it, each in a folder of its name. export: peft, an
    adapter; merged, whole weights; [] for none. report: report.html in the run's folder (needs matplotlib).
    """

    dir: str = "runs"
    export: list[Literal["peft", "merged"]] = ["peft"]
    report: bool = False


SECTIONS: dict[str, type[Section]] = {
    "model": Model,
    "data": Data,
    "train": Train,
    "eval": Eval,
    "log": LogOptions,
    "output": Output,
}

REQUIRED_KEYS = {  # and an example of each
    "version": "version: 1",
    "model": "model: {source: smollm2-135m-instruct}",
    "data": "data: {train: rows.jsonl}",
}

DEFAULT_PARTS = {"noise": "rademacher", "estimator": "two_sided", "rule": "sgd", "space": "lora", "task": "classify"}


def without_values(table: dict[str, Any], values: dict[str, Any]) -> dict[str, Any]:
    """A table, and those in it, without some keys where they have some values."""
    kept = {k: v for k, v in table.items() if k not in values or v != values[k]}
    return {k: without_values(v, values) if isinstance(v, dict) else v for k, v in kept.items()}

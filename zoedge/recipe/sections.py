"""This module has the sections of a recipe that are settings of the run itself: model, data, train, eval, log and output."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from annotated_doc import Doc
from annotated_types import Ge, Gt, Le, Lt
from pydantic import AfterValidator, BaseModel, ConfigDict, model_validator


def check_folder_name(value: str) -> str:
    """Return a run's name, which is its folder's. ValueError: it might lead out of the folder of runs."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", value):
        raise ValueError("a name: letters, digits, '.', '_' and '-', at most 64, a letter or a digit first")
    return value


def check_split_size(value: int | float) -> int | float:
    """Return a number of rows, or a share of them. ValueError: it is neither."""
    if not (value >= 1 if isinstance(value, int) else 0 < value < 1):
        raise ValueError("a number of rows (200) or a share of them (0.1)")
    return value


RunName = Annotated[str, AfterValidator(check_folder_name)]

Seed = Annotated[int, Ge(0), Lt(2**64)]


class Section(BaseModel):
    """A table of the recipe. A validator's ValueError says what the value should have been: "X is not ..."."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, protected_namespaces=())


SIZE_PATTERN = re.compile(r"[0-9]+(\.[0-9]+)? ?[KMG]i?B")


def parse_size(text: str) -> int:
    """Return the bytes of a size such as 4GB (10^9 each) or 4GiB (2^30 each), which SIZE_PATTERN matches."""
    number, unit, binary = re.fullmatch(r"([0-9.]+) ?([KMG])(i?)B", text).groups()  # type: ignore[union-attr]
    return int(float(number) * (1024 if binary else 1000) ** ("KMG".index(unit) + 1))


def check_size(value: str) -> str:
    """Return a size in bytes. ValueError: it is none."""
    if not SIZE_PATTERN.fullmatch(value):
        raise ValueError("a size such as 4GB or 500MB; 0GB keeps nothing")
    return value


def check_max_memory(value: dict[str, str] | None) -> dict[str, str] | None:
    """Return the size that each device may hold. ValueError: a device is unknown, or a size is none."""
    for device, size in (value or {}).items():
        if device not in ("cuda", "cpu") or not SIZE_PATTERN.fullmatch(size):
            raise ValueError("how much of the weights a device may hold: {cpu: 2GB}, or {cuda: 6GB, cpu: 16GB}")
    return value


class Model(Section):
    """Which base a run has, and how it is held and computed."""

    source: Annotated[str, Doc("The base: a folder, a packaged model, or a hub id.")]
    revision: Annotated[str | None, Doc("The hub's commit, branch or tag.")] = None
    quantization: Annotated[
        Literal["nf4", "fp4", "int8", "none"], Doc("How the base's weights are held; none: as they are stored.")
    ] = "nf4"
    double_quant: Annotated[bool, Doc("Whether the scales of a 4-bit base are quantised too.")] = True
    compute_dtype: Annotated[
        Literal["auto", "fp32", "bf16", "fp16"],
        Doc("The number type of the computation; auto is fp32 on a CPU, and bf16 or fp16 on a GPU."),
    ] = "auto"
    trunk_dtype: Annotated[
        Literal["auto", "fp32", "bf16"] | None,
        Doc(
            "The number type of products below the first trained block, on a CPU; auto is bf16 where two short products before "
            "the run show it to be faster. It is compute_dtype, if this is not written."
        ),
    ] = None
    device: Annotated[Literal["auto", "cpu", "cuda"], Doc("Where the base is; auto is a GPU if there is one.")] = "auto"
    threads: Annotated[
        int | None,
        Ge(1),
        Le(1024),
        Doc("How many threads of the CPU compute; the library chooses, if this is not written."),
    ] = None
    max_memory: Annotated[
        dict[str, str] | None,
        AfterValidator(check_max_memory),
        Doc(
            "How much of the weights the devices may hold ({cpu: 2GB}). Blocks beyond it stay on the disk, and "
            "are read once a forward, for all its points: the lowest ones, which a step does not need where only "
            "upper ones are trained."
        ),
    ] = None

    @model_validator(mode="after")
    def whole(self) -> Model:
        """Refuse a limit of memory for a quantised base, whose blocks are not loaded one by one."""
        if self.max_memory is not None and self.quantization != "none":
            raise ValueError(
                "max_memory: a quantised base is held whole. Write quantization: none, or leave max_memory out"
            )
        return self


class Split(Section):
    """So many rows (or that share of them), taken by a hash of their text: equal texts never stand on both sides."""

    split: Annotated[
        int | float, AfterValidator(check_split_size), Doc("A number of rows (200), or a share of them (0.1).")
    ]


class Data(Section):
    """Which rows a run reads, and what becomes of them."""

    train: Annotated[
        str,
        Doc(
            "The training rows: a .jsonl, .json, .csv, .parquet or .txt file, a folder with train.jsonl, "
            "valid.jsonl and test.jsonl, a packaged text, a hub id (ORG/SET:SPLIT), or FOLDER:NAME of a "
            "dataset_info.json."
        ),
    ]
    valid: Annotated[
        str | Split | None, Doc("The validation rows: as train, or {split: 0.1} of the training rows.")
    ] = None
    test: Annotated[str | Split | None, Doc("The test rows: as train, or {split: 0.1} of the training rows.")] = None
    format: Annotated[
        Literal["auto", "messages", "sharegpt", "alpaca", "completions", "segments", "text"],
        Doc(
            "What a row is. auto: its keys say it; write it where rows have the keys of two formats (task chat or lm)."
        ),
    ] = "auto"
    fields: Annotated[
        dict[str, str], Doc("The names of fields that the task uses, each with the file's name for it.")
    ] = {}
    without: Annotated[dict[str, str], Doc("Rows whose field is that text are left out ({label: '-1'}).")] = {}
    limit: Annotated[int | None, Ge(1), Doc("The most training rows; they are drawn by their content.")] = None
    per_class: Annotated[
        int | None,
        Ge(1),
        Doc(
            "So many rows of each label, drawn by the run's seed, for the training rows and for a split `valid` "
            "(few-shot)."
        ),
    ] = None
    max_length: Annotated[int, Ge(2), Doc("The most tokens of a row.")] = 512
    on_overflow: Annotated[
        Literal["error", "truncate", "drop"], Doc("What becomes of rows with more tokens than max_length.")
    ] = "error"
    on_untrainable: Annotated[
        Literal["stop", "drop"],
        Doc(
            "What becomes of rows that can be read but not trained on, such as a conversation without an answer: stop "
            "names them all, drop leaves them out, and counts them."
        ),
    ] = "stop"
    skip_bad_lines: Annotated[
        bool, Doc("Whether lines that cannot be read are dropped and counted, instead of refused.")
    ] = False


class WatchdogOptions(Section):
    """What guards a run: a limit of |g|, and returns to the best state with a smaller learning rate."""

    clip: Annotated[
        float, Ge(0), Doc("|g| is at most so many times the median of its last 200 values; 0 sets no limit.")
    ] = 10.0
    factor: Annotated[
        float,
        Gt(1),
        Doc(
            "The run goes back to its best logged state, with half the lr, after `patience` steps in a row whose loss "
            "is over this many times the lowest mean of `patience` losses, or after 8 steps that are not finite."
        ),
    ] = 3.0
    patience: Annotated[
        int, Ge(1), Doc("How many steps a mean is of, and how many bad steps in a row are too many.")
    ] = 50
    rewinds: Annotated[int, Ge(0), Le(64), Doc("How many times the run goes back before it stops.")] = 2
    rise: Annotated[
        float | None,
        Gt(1),
        Doc(
            "The run also goes back where the mean of `patience` losses is over so many times the lowest such "
            "mean; off, if this is not written."
        ),
    ] = None
    trust: Annotated[
        float | None,
        Gt(0),
        Doc(
            "|g| is clipped so that a step, were the loss linear, would take at most this share off it (lr g^2 at most "
            "trust times the loss). Off, if this is not written. It is for estimators of one slope and rule sgd."
        ),
    ] = None


class Train(Section):
    """How long a run is, and how much it computes at a time."""

    steps: Annotated[int, Ge(1), Lt(2**31), Doc("The steps of the run.")] = 6000
    batch: Annotated[int, Ge(1), Doc("The rows of data in a step.")] = 16
    rows: Annotated[
        int, Ge(1), Doc("The token rows in one forward; a step with more points than fit takes several forwards.")
    ] = 2048
    threads: Annotated[
        int | None,
        Ge(1),
        Le(1024),
        Doc(
            "The threads of the steps, once the lower layers are computed. Small steps on a machine that has "
            "other work want 1."
        ),
    ] = None
    watchdog: Annotated[
        WatchdogOptions | None,
        Doc(
            "{} guards the run with the defaults, null does not. If this is not written, the watchdog is on where "
            "rule.lr is auto."
        ),
    ] = None
    timeout: Annotated[
        float | None,
        Gt(0),
        Doc("The seconds to wait for another worker, where several share the steps (1800, if this is not written)."),
    ] = None


class Curvature(Section):
    """The trace of the Hessian along the way (FlatZero). It costs 1 + 2 * directions forward passes of the rows."""

    every: Annotated[int, Ge(1), Doc("The steps between two measurements.")] = 1000
    directions: Annotated[int, Ge(1), Doc("How many normal directions are measured.")] = 16
    delta: Annotated[float, Gt(0), Doc("The radius at which they are measured.")] = 1e-2
    rows: Annotated[int, Ge(1), Doc("How many training rows are measured.")] = 256
    estimator: Annotated[
        Literal["antithetic", "paper"],
        Doc("antithetic cancels the gradient; paper is the paper's estimator, whose error grows with the gradient."),
    ] = "antithetic"


class Eval(Section):
    """How often a run is looked at, and which of its steps is delivered."""

    every: Annotated[int, Ge(1), Doc("The steps between two looks at the validation rows.")] = 250
    select: Annotated[
        Literal["last", "best"],
        Doc(
            "The step that is delivered and scored at the end: the last, or the one of the lowest validation loss, the start "
            "included. Where there are validation rows, best is the default."
        ),
    ] = "last"
    drift: Annotated[
        float | None,
        Gt(0),
        Doc(
            "The most that a step which `select: best` chooses may have drifted from the base: KL(base || tuned) on the "
            "unscored tokens of the validation rows, in nats a token. There is no limit, if this is not written."
        ),
    ] = None
    at_start: Annotated[bool, Doc("Whether the base alone is scored before the run.")] = True
    closed_form: Annotated[
        bool,
        Doc(
            "Whether a classifier in closed form, fitted to one pass over some training rows, is scored beside the run, "
            "where the options are one token each."
        ),
    ] = True
    calibrate: Annotated[int, Ge(1), Doc("How many unlabelled training rows the label bias is taken from.")] = 256
    curvature: Annotated[
        Curvature | None, Doc("How the curvature is measured along the way; it is not, if this is not written.")
    ] = None


TrackerName = Literal["aim", "clearml", "comet_ml", "dvclive", "mlflow", "swanlab", "tensorboard", "trackio", "wandb"]


class LogOptions(Section):
    """The log of a run, and who else is told."""

    sync_every: Annotated[
        int,
        Ge(1),
        Le(4096),
        Doc(
            "The most steps between two syncs to the disk; one second is the most time. A power cut can lose what was not "
            "synced, a kill loses nothing. 1 syncs every step before it is applied."
        ),
    ] = 64
    hash_every: Annotated[int, Ge(1), Lt(2**32), Doc("The steps between two hashes of the state.")] = 100
    trackers: Annotated[list[TrackerName], Doc("Who else is told of losses and scores (accelerate's trackers).")] = []


class Output(Section):
    """Where a run goes, and what is written at its end."""

    dir: Annotated[str, Doc("The folder of the runs; each lies in a folder of its own name.")] = "runs"
    export: Annotated[
        list[Literal["peft", "merged"]],
        Doc("What is written at the end: peft, an adapter; merged, whole weights; [] for nothing."),
    ] = ["peft"]
    report: Annotated[bool, Doc("Whether report.html is written into the run's folder (needs matplotlib).")] = False


class Cache(Section):
    """What is kept between runs, so that the next one need not compute it. It changes no number of a run."""

    limit: Annotated[
        str,
        AfterValidator(check_size),
        Doc(
            "How much of the disk the lower layers' outputs may take in the cache, of all runs together; the least recently "
            "used go first, and 0GB keeps none."
        ),
    ] = "4GB"


SECTIONS: dict[str, type[Section]] = {
    "model": Model,
    "data": Data,
    "train": Train,
    "eval": Eval,
    "log": LogOptions,
    "output": Output,
    "cache": Cache,
}

REQUIRED_KEYS = {  # and an example of each
    "version": "version: 1",
    "model": "model: {source: smollm2-135m-instruct}",
    "data": "data: {train: rows.jsonl}",
}

DEFAULT_PARTS = {"noise": "rademacher", "estimator": "two_sided", "rule": "sgd", "space": "lora", "task": "classify"}


def without_values(table: dict[str, Any], values: dict[str, Any]) -> dict[str, Any]:
    """Return a table without the keys whose value is the one in `values`; so are the tables within it."""
    kept = {k: v for k, v in table.items() if k not in values or v != values[k]}
    return {k: without_values(v, values) if isinstance(v, dict) else v for k, v in kept.items()}

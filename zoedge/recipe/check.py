"""What the user wrote: YAML read strictly, every mistake at once with file:line:column and the way out.

A section's keys are the fields of the class that uses it, and each default is written there alone. `model`, `data`,
`train`, `eval`, `log` and `output` are here; noise, estimator, rule, space and task are the parts' own classes.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Iterator
from dataclasses import MISSING, asdict, dataclass, field, fields, is_dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, Literal, get_type_hints

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    TypeAdapter,
    ValidationError,
    create_model,
    model_validator,
)

from ..core.parts import FOLDERS, part
from ..errors import UsageError, ZoedgeError, listed, nearest, plain
from .foreign import FOREIGN, WHY

LIMIT, DEPTH = 64 << 10, 16
ENOUGH = 100  # faults that are looked for: 30,000 in 60 KiB would take 44 s
Place = tuple[int, int]  # line, column, from 1; (0, 0) is a key=value
Path_ = tuple[Any, ...]
Marks = dict[Path_, Place]
Fault = Callable[[Path_, str], None]


def folder_name(value: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", value):
        raise ValueError("a name: letters, digits, '.', '_' and '-', at most 64, a letter or a digit first")
    return value


def rows_or_share(value: int | float) -> int | float:
    if not (value >= 1 if isinstance(value, int) else 0 < value < 1):
        raise ValueError("a number of rows (200) or a share of them (0.1)")
    return value


Name = Annotated[str, AfterValidator(folder_name)]
Seed = Annotated[int, Field(ge=0, lt=2**64)]


class Section(BaseModel):
    """A table of the recipe. A validator's ValueError says what the value should have been: "X is not ..."."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, protected_namespaces=())


SIZE = re.compile(r"[0-9]+(\.[0-9]+)? ?[KMG]i?B")


def sizes(value: dict[str, str] | None) -> dict[str, str] | None:
    for device, size in (value or {}).items():
        if device not in ("cuda", "cpu") or not SIZE.fullmatch(size):
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
    max_memory: Annotated[dict[str, str] | None, AfterValidator(sizes)] = None

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

    split: Annotated[int | float, AfterValidator(rows_or_share)]


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


class Watchdog(Section):
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
    watchdog: Watchdog | None = None
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


Tracker = Literal["aim", "clearml", "comet_ml", "dvclive", "mlflow", "swanlab", "tensorboard", "trackio", "wandb"]


class LogOptions(Section):
    """The log. sync_every: steps a sync to the disk. hash_every: steps between hashes of the state. trackers: who else is
    told of losses and scores (accelerate's).
    """

    sync_every: int = Field(1, ge=1, le=4096)
    hash_every: int = Field(100, ge=1, lt=2**32)
    trackers: list[Tracker] = []


class Output(Section):
    """Where runs go, and what to write at the end. dir: runs lie below it, each in a folder of its name. export: peft, an
    adapter; merged, whole weights; [] for none. report: report.html in the run's folder (needs matplotlib).
    """

    dir: str = "runs"
    export: list[Literal["peft", "merged"]] = ["peft"]
    report: bool = False


SECTIONS: dict[str, type[Section]] = {
    "model": Model, "data": Data, "train": Train, "eval": Eval, "log": LogOptions, "output": Output,
}  # fmt: skip
REQUIRED = {  # and an example of each
    "version": "version: 1",
    "model": "model: {source: smollm2-135m-instruct}",
    "data": "data: {train: rows.jsonl}",
}
DEFAULTS = {"noise": "rademacher", "estimator": "two_sided", "rule": "sgd", "space": "lora", "task": "classify"}


WATCHDOG = "train.watchdog"  # on where lr is found: what short runs find may be too much for a long one
GUARD = Watchdog(rise=1.5, rewinds=8)
TRUST = 0.03  # docs/auto.md says what it was chosen by
# younger than the first logs: left out where they are as they were then, so that those recipes keep their digests
LATER = {
    "watchdog": None, "rise": None, "trust": None, "format": "auto", "report": False, "trackers": [], "timeout": None,
    "max_memory": None,
}  # fmt: skip


@dataclass(frozen=True)
class Recipe:
    """A checked recipe: sections and parts as the objects that use them. `seed` is 64 bits; 0 is a seed."""

    name: str
    seed: int
    model: Model
    data: Data
    task: Any
    space: Any
    noise: Any
    estimator: Any
    rule: Any
    train: Train
    eval: Eval
    log: LogOptions
    output: Output
    # 'rule.lr': chosen before the run begins, until then the class's number. Not compared: a guard that was not told
    # comes back told from `resolved`, with the same values
    auto: frozenset[str] = field(default=frozenset(), compare=False)

    def resolved(self) -> dict[str, Any]:
        """Every value, defaults included, as the YAML that would be read back to the same recipe."""
        table: dict[str, Any] = {"version": 1, "name": self.name, "seed": self.seed}
        for key, value in vars(self).items():
            if isinstance(value, Section):
                table[key] = without(value.model_dump(), LATER)
            elif is_dataclass(value) and not isinstance(value, type):
                table[key] = {"name": word_of(value), **asdict(value)}
        for section, key in (path.split(".") for path in self.auto - {WATCHDOG}):
            table[section][key] = "auto"
        return table

    def with_numbers(self, numbers: dict[str, Any]) -> Recipe:
        """The recipe with some of its `auto` values: 'rule.lr' -> 1e-3. What is not told keeps the class's."""
        made: dict[str, Any] = {}
        for path, value in numbers.items():
            section, key = path.split(".")
            here = made.get(section, getattr(self, section))
            made[section] = (
                here.model_copy(update={key: value}) if isinstance(here, Section) else replace(here, **{key: value})
            )
        return replace(self, **made, auto=self.auto - numbers.keys())

    def semantic(self) -> dict[str, Any]:
        """What decides the numbers. Not: names, folders, how often to look, where files lie (contents are digested)."""
        table = self.resolved()
        for key in ("name", "output", "eval"):
            del table[key]
        for section, keys in {
            "model": ("source", "revision", "device", "threads", "max_memory"),
            "data": tuple(Data.model_fields),
            "log": ("sync_every", "trackers"),
            "train": ("timeout",),
        }.items():
            for key in keys:
                table[section].pop(key, None)
        return table


def without(table: dict[str, Any], values: dict[str, Any]) -> dict[str, Any]:
    """A table, and those in it, without some keys where they have some values."""
    kept = {k: v for k, v in table.items() if k not in values or v != values[k]}
    return {k: without(v, values) if isinstance(v, dict) else v for k, v in kept.items()}


def word_of(value: Any) -> str:
    """The recipe's word for a part: its file's name."""
    return type(value).__module__.rpartition(".")[2]


# -- YAML, strictly


class Strict(yaml.SafeLoader):
    """YAML 1.2's floats and booleans; no anchors, aliases or tags; at most DEPTH deep."""

    def __init__(self, text: str, where: str):
        super().__init__(text)
        self.where, self.depth = where, 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        event: Any = self.peek_event()  # type: ignore[no-untyped-call]
        at = f"{self.where}:{event.start_mark.line + 1}:{event.start_mark.column + 1}"
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None):
            raise UsageError(f"{at}: anchors and aliases are not read. Write the value out.")
        if getattr(event, "tag", None):
            raise UsageError(f"{at}: the tag {plain(event.tag)} is not read. Remove it.")
        self.depth += 1
        if self.depth > DEPTH:
            raise UsageError(f"{at}: nested more than {DEPTH} deep.")
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node


class Writer(yaml.SafeDumper):
    """Quotes what Strict would read as something else than a text, and never writes an anchor."""

    def ignore_aliases(self, data: Any) -> bool:
        return True

    def represent_str(self, data: str) -> Any:
        return self.represent_scalar("tag:yaml.org,2002:str", data, style=None if data.isprintable() else '"')


Writer.add_representer(str, Writer.represent_str)  # PyYAML writes U+0085 and U+2028 in quotes that read them as a space


NULL, BOOL, INT, FLOAT = (f"tag:yaml.org,2002:{word}" for word in ("null", "bool", "int", "float"))
SCALARS = (  # 012 is neither octal nor a number: it is a text, and is refused where a number is wanted
    (NULL, r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    (BOOL, r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    (INT, r"[-+]?(?:0|[1-9][0-9]*)", list("-+0123456789")),
    (FLOAT, r"[-+]?(?:\.[0-9]+|(?:0|[1-9][0-9]*)(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?", list("-+0123456789.")),
    (FLOAT, r"[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)", list("-+.")),
)
Strict.yaml_implicit_resolvers = {}
for tag, regexp, first in SCALARS:
    for kind in (Strict, Writer):
        kind.add_implicit_resolver(tag, re.compile(f"^(?:{regexp})$"), first)


def read_yaml(text: str, where: str) -> tuple[Any, Marks]:
    """(value, path -> place) of strict YAML. UsageError with file:line:column."""
    marks: Marks = {}
    try:
        loader = Strict(text, where)
        node = loader.get_single_node()
    except yaml.MarkedYAMLError as e:
        mark, what = e.problem_mark or e.context_mark, e.problem or e.context or "?"
        what = f"{e.context} {what}" if what.startswith("but ") else what
        at = f":{mark.line + 1}:{mark.column + 1}" if mark else ""
        raise UsageError(f"{where}{at}: not valid YAML: {plain(what)}.") from None
    except yaml.reader.ReaderError as e:
        line, column = text.count("\n", 0, e.position) + 1, e.position - text.rfind("\n", 0, e.position)
        raise UsageError(f"{where}:{line}:{column}: the character U+{ord(text[e.position]):04X} is not read.") from None
    return (build(node, (), marks, where) if node is not None else None), marks


def build(node: Any, path: Path_, marks: Marks, where: str) -> Any:
    here = (node.start_mark.line + 1, node.start_mark.column + 1)
    marks.setdefault(path, here)
    if isinstance(node, yaml.SequenceNode):
        return [build(n, (*path, i), marks, where) for i, n in enumerate(node.value)]
    if isinstance(node, yaml.MappingNode):
        table: dict[str, Any] = {}
        for k, v in node.value:
            at = (k.start_mark.line + 1, k.start_mark.column + 1)
            if not isinstance(k, yaml.ScalarNode):
                raise UsageError(f"{where}:{at[0]}:{at[1]}: a key must be a word.")
            whole(k.value, where, at)
            if k.value in table:
                raise UsageError(f"{where}:{at[0]}:{at[1]}: '{plain(k.value)}' stands twice. Remove one.")
            marks[(*path, k.value)] = at
            table[k.value] = build(v, (*path, k.value), marks, where)
        return table
    value: str = node.value
    if node.tag == NULL:
        return None
    if node.tag == BOOL:
        return value.lower() == "true"
    if node.tag == INT and len(value) < 1000:  # Python refuses to read (and to print) much longer ones
        return int(value)
    if node.tag in (INT, FLOAT):
        return float(value.lower().replace(".inf", "inf").replace(".nan", "nan"))
    return whole(value, where, here)


def whole(text: str, where: str, at: Place) -> str:
    if any("\ud800" <= c <= "\udfff" for c in text):
        raise UsageError(f"{where}:{at[0]}:{at[1]}: half a character (a lone surrogate). Write it whole.")
    return text


def dump(recipe: Recipe) -> str:
    """The resolved recipe as YAML that `read` reads back to the same recipe."""
    return yaml.dump(recipe.resolved(), Dumper=Writer, sort_keys=False, allow_unicode=True, width=120)


# -- from YAML to a recipe


def find(name: str) -> Path:
    """A recipe's file: a path, else a shipped recipe's name."""
    if Path(name).is_file():
        return Path(name)
    known = {p.stem: p for p in shipped()}
    if (stem := name.removesuffix(".yaml")) in known:
        return known[stem]
    raise UsageError(
        f"No recipe '{plain(name)}': no such file, and not a shipped one ({', '.join(known)})"
        f"{nearest(Path(stem).name, known) or '.'}"
    )


def shipped() -> list[Path]:
    """The recipes that come with zoedge: beside the package in a checkout, inside it once installed."""
    here = Path(__file__).parents[1]
    for folder in (here / "recipes", here.parent / "recipes"):
        if folder.is_dir():
            return sorted(folder.glob("*.yaml"))
    return []


def read(name: str, overrides: list[str] | None = None) -> Recipe:
    """A recipe from a file (or a shipped name) and `key=value` overrides. UsageError lists every mistake at once."""
    return check(*tabled(name, overrides))


def tabled(name: str, overrides: list[str] | None = None) -> tuple[dict[str, Any], Marks, str, list[str]]:
    """What `check` takes: a recipe's table as it is written, where its keys stand, its file, and faults so far."""
    path = find(name)
    text = text_of(path)
    table, marks = read_yaml(text, str(path))
    if not isinstance(table, dict):
        raise UsageError(f"{path}: a recipe is a table of keys and values; see `zoedge recipes show quickstart`.")
    return overridden(table, marks, str(path), overrides or [], path.stem)


def made(table: dict[str, Any], marks: Marks, where: str, overrides: list[str], stem: str = "run") -> Recipe:
    """The recipe of a table and `key=value` overrides, named after `stem`. UsageError lists every mistake at once."""
    return check(*overridden(table, marks, where, overrides, stem))


def overridden(
    table: dict[str, Any], marks: Marks, where: str, overrides: list[str], stem: str
) -> tuple[dict[str, Any], Marks, str, list[str]]:
    wrong: list[str] = []
    for override in overrides:
        try:
            apply(table, marks, override)
        except UsageError as e:
            wrong.append(f"{where} (key=value): {e}")
    if table.get("name") is None:
        table["name"] = re.sub(r"[^A-Za-z0-9._-]", "-", stem).lstrip("._-")[:64] or "run"
    return table, marks, where, wrong


def text_of(path: Path) -> str:
    """A recipe's text, read with a limit and strictly."""
    try:
        with path.open("rb") as file:
            raw = file.read(LIMIT + 1)
        text = raw.decode("utf-8-sig") if len(raw) <= LIMIT else ""
    except OSError as e:
        raise UsageError(f"{path}: cannot be read: {e.strerror}.") from None
    except UnicodeDecodeError as e:
        raise UsageError(f"{path}:{raw.count(10, 0, e.start) + 1}: not UTF-8 text (byte {e.start}).") from None
    if len(raw) > LIMIT:
        raise UsageError(f"{path}: larger than {LIMIT >> 10} KiB: not a recipe.")
    return text


def apply(table: dict[str, Any], marks: Marks, override: str) -> None:
    """Set `a.b=value`; the value is YAML. A bare word is turned into a table where a key of it is set."""
    key, equals, text = override.partition("=")
    path = tuple(key.strip().split("."))
    if not equals or not all(path) or len(path) > DEPTH:
        raise UsageError(f"'{plain(override)}' is not key=value, such as rule.lr=1e-3.")
    try:
        value, _ = read_yaml(text, plain(override))
    except UsageError as e:
        raise UsageError(f"{e} Quotes make it a text: {plain(key)}='\"...\"'.") from None
    put(table, marks, path, value, f"'{plain(override)}': ")


def put(
    table: dict[str, Any], marks: Marks, path: tuple[str, ...], value: Any, said: str = "", place: Place = (0, 0)
) -> None:
    """Set a value that stands at `place`. UsageError, beginning with `said`: a value stands where a table should."""
    for i, word in enumerate(path[:-1]):
        inner = table.get(word)
        if isinstance(inner, str) and word in FOLDERS and i == 0:
            inner = {"name": inner}
        elif inner is None:
            inner = {}
        elif not isinstance(inner, dict):
            raise UsageError(f"{said}{plain('.'.join(path[: i + 1]))} is not a table of keys.")
        table[word] = inner
        table = inner
    table[path[-1]] = value
    for known in [m for m in marks if m[: len(path)] == path]:
        del marks[known]
    for i in range(1, len(path)):
        marks.setdefault(path[:i], place)
    marks[path] = place


def check(table: dict[str, Any], marks: Marks, where: str, wrong: Collection[str] = ()) -> Recipe:
    """The recipe of a table; every mistake is collected, beside those in `wrong`, before one UsageError is raised."""
    if not isinstance(table, dict) or odd(table):  # a log's recipe has not come through read_yaml
        raise UsageError(f"{where}: not a table of keys and values, at most {DEPTH} deep, without NUL characters.")
    found: list[tuple[Place, str]] = [((0, 0), text) for text in wrong]
    given = {key: value for key, value in table.items() if value is not None}

    def fault(path: Path_, what: str) -> None:
        place = next((marks[path[:i]] for i in range(len(path), -1, -1) if path[:i] in marks), (0, 0))
        at = f"{where}:{place[0]}:{place[1]}" if place[0] else f"{where} (key=value)" if marks else where
        found.append((place, f"{at}: {what}" + ("" if what.endswith(("?", ".")) else ".")))
        if len(found) > ENOUGH:
            raise UsageError(listed([text for _, text in sorted(found)]))

    parts: dict[str, Any] = {}
    auto: set[str] = set()
    classes = {key: build_part(key, given.get(key, DEFAULTS[key]), fault, (key,)) for key in FOLDERS}
    names = {key: list(section.model_fields) for key, section in SECTIONS.items()}
    names |= {key: ["name", *(schema(made).model_fields if made else ())] for key, (made, _) in classes.items()}
    names |= {
        "eval.curvature": list(Curvature.model_fields),
        "train.watchdog": list(Watchdog.model_fields),
        "data.valid": list(Split.model_fields),
        "data.test": list(Split.model_fields),
    }
    names[""] = ["version", "name", "seed", *SECTIONS, *FOLDERS]

    def validated(kind: Any, value: Any, path: Path_) -> Any:
        try:  # as JSON, whose lists pydantic also takes for tuples
            return TypeAdapter(kind).validate_json(json.dumps(value), strict=True)
        except ValidationError as e:
            for place, what in mistakes(e, value):
                place = (*path, *place)
                if what == UNKNOWN:
                    fault(place, unknown(place, names))
                elif what == ABSENT and len(place) == 2 and path[0] in REQUIRED:
                    fault(place, f"{dotted(place)}: missing - such as '{REQUIRED[path[0]]}'")
                else:
                    fault(place, f"{dotted(place)}: {what}")
        return None

    def made_of(made: Any, options: dict[str, Any], path: Path_) -> Any:
        """The part of a class and its options, parts within it first; None: it has faults."""
        if made is None or (checked := validated(schema(made), options, path)) is None:
            return None
        values = vars(checked)
        for option, kind in getattr(made, "nested", {}).items():
            inner = {}
            for word, some in values[option].items():
                here = (*path, option, word)
                found, _ = build_part(kind, word, fault, here)
                names[dotted(here)] = list(schema(found).model_fields) if found else []
                inner[word] = made_of(found, {} if some is None else some, here)
            if None in inner.values():
                return None
            values = {**values, option: inner}
        for option in getattr(made, "auto", ()):
            if values[option] == "auto":
                values = {**values, option: getattr(made, option)}
                auto.add(dotted((*path, option)))
        try:
            return made(**values)
        except (ValueError, ZoedgeError) as e:
            fault((*path, *str(e).partition(":")[0].split(".")), f"{dotted(path)}.{e}")
            return None

    for key in table:
        if key not in names[""]:
            fault((key,), unknown((key,), names))
    for key, example in REQUIRED.items():
        if key not in given:
            fault((), f"{key}: missing - write '{example}'")
    if "version" in given and (given["version"] != 1 or type(given["version"]) is not int):
        fault(("version",), f"version: {shown(given['version'])} is not read by this zoedge - write 'version: 1'")
    parts["name"] = validated(Name, given.get("name", "run"), ("name",))
    parts["seed"] = validated(Seed, given.get("seed", 0), ("seed",))
    for key, section in SECTIONS.items():
        if key in given or key not in REQUIRED:
            parts[key] = validated(section, given.get(key, {}), (key,))
    for key, (made, options) in classes.items():
        parts[key] = made_of(made, options, (key,))
    if (
        parts.get("space")
        and parts.get("output")
        and "merged" in parts["output"].export
        and not getattr(parts["space"], "merges", True)
    ):
        fault(("output", "export"), f"output.export: a {parts['space'].title} changes no weight: nothing to merge")
    if parts.get("eval") and parts["eval"].select == "best" and parts.get("data") and parts["data"].valid is None:
        fault(("eval", "select"), "eval.select: best is chosen on validation rows - write data.valid: {split: 0.1}")
    taken = getattr(parts.get("task"), "formats", ())
    if parts.get("task") and parts.get("data") and parts["data"].format not in ("auto", *taken):
        home = "lm" if parts["data"].format == "text" else "chat"
        fault(
            ("data", "format"),
            f"data.format: {parts['data'].format} goes with task: {home}, not {word_of(parts['task'])}",
        )
    if parts.get("rule") and parts.get("train"):
        try:
            parts["rule"].check(parts["train"].steps)
        except ValueError as e:
            fault(("rule", str(e).partition(":")[0]), f"rule.{e}")
    for kind, option in (
        path.split(".") for path in sorted(auto)
    ):  # where one value alone goes with the others, it is it
        allowed = [getattr(parts.get(key), "only_with", {}).get(f"{kind}.{option}") for key in classes]
        if (only := next((a for a in allowed if a), None)) and parts.get(kind) is not None:
            parts[kind] = replace(parts[kind], **{option: only[0]})
            auto.discard(f"{kind}.{option}")
    for key, other, those, found_there in unmatched(parts):
        fault((key,), f"{key}: {word_of(parts[key])} goes only with {other}: {those}, not {found_there}")
    if "rule.lr" in auto and "schedule" not in classes["rule"][1]:
        parts["rule"] = replace(parts["rule"], schedule="linear")
    if "rule.lr" in auto and parts.get("train") and "watchdog" not in parts["train"].model_fields_set:
        slope = getattr(parts.get("estimator"), "slope", False) and word_of(parts["rule"]) == "sgd"
        guard = GUARD.model_copy(update={"trust": TRUST}) if slope else GUARD
        parts["train"] = parts["train"].model_copy(update={"watchdog": guard})
        auto.add(WATCHDOG)
    output = parts.get("output")
    if output and "peft" in output.export and not getattr(parts.get("space"), "adapter", True):
        parts["output"] = output.model_copy(update={"export": [x for x in output.export if x != "peft"]})
        if "export" in given.get("output", {}):
            what = f"space {word_of(parts['space'])} has no adapter, and PEFT no format for it"
            fault(("output", "export"), f"output.export: {what} - write [merged], or []")
    if found:
        raise UsageError(listed([text for _, text in sorted(found)]))
    return Recipe(**parts, auto=frozenset(auto))


def unmatched(parts: dict[str, Any]) -> Iterator[tuple[str, str, str, Any]]:
    """(a part, what it goes only with, the words allowed there, the one found) of each pair that makes no sense."""
    for key in FOLDERS:
        for other, allowed in getattr(parts.get(key), "only_with", {}).items():
            kind, _, option = other.partition(".")
            if parts.get(kind) is None:
                continue
            found = getattr(parts[kind], option, allowed[0]) if option else word_of(parts[kind])
            if found not in allowed:
                yield key, other, " or ".join(map(str, allowed)), found


def odd(value: Any, left: int = DEPTH) -> bool:
    """Is it too deep, or is there a NUL, which no name of a file can hold?"""
    if isinstance(value, str):
        return "\0" in value
    inner = (*value, *value.values()) if isinstance(value, dict) else value if isinstance(value, list) else ()
    return left < 0 or any(odd(v, left - 1) for v in inner)


def build_part(kind: str, value: Any, fault: Fault, path: Path_) -> tuple[Any, dict[str, Any]]:
    """(class or None, options) of a part from `word` or `{name: word, ...options}`."""
    options = {"name": value} if isinstance(value, str) else value
    if not isinstance(options, dict) or not isinstance(word := options.get("name", DEFAULTS[kind]), str):
        fault(path, f"{dotted(path)}: {shown(value)} is not a word, or a table such as {{name: {DEFAULTS[kind]}, ...}}")
        return None, {}
    try:
        return part(kind, word), {k: v for k, v in options.items() if k != "name"}
    except ZoedgeError as e:
        fault((*path, "name"), str(e))
        for key in options:
            if key in FOREIGN or key in WHY:
                fault((*path, key), unknown((*path, key), {}))
        return None, {}


def options(made: type[Any], overrides: list[str]) -> Any:
    """An object of frozen-dataclass `made` from key=value texts. UsageError: every mistake, a sentence each."""
    table: dict[str, Any] = {}
    for override in overrides:
        apply(table, {}, override)
    try:
        return made(**vars(TypeAdapter(schema(made, False)).validate_json(json.dumps(table), strict=True)))
    except ValidationError as e:
        names = {"": list(schema(made, False).model_fields)}
        found = [
            unknown(path, names) if what == UNKNOWN else f"{dotted(path)}: {what}." for path, what in mistakes(e, table)
        ]
        raise UsageError("\n".join(found)) from None


def rebuilt(kind: str, table: dict[str, Any]) -> Any:
    """A part from what `Recipe.resolved` says of it. ValueError or ZoedgeError: it is not one."""
    made = part(kind, table["name"])
    given = json.dumps({key: value for key, value in table.items() if key != "name"})
    return made(**vars(TypeAdapter(schema(made, False)).validate_json(given, strict=True)))


@lru_cache
def schema(made: type[Any], auto: bool = True) -> type[Section]:
    """A part's fields as a section: pydantic checks dataclasses strictly only when it is handed instances.

    auto: those in the class's `auto` may be 'auto', and are, if not told: the class's number is where the search begins.
    Where nobody searches (an optimiser, a log), they are numbers.
    """
    hints = get_type_hints(made, include_extras=True)
    columns: dict[str, Any] = {}
    for f in fields(made):
        if auto and f.name in getattr(made, "auto", ()):
            columns[f.name] = (hints[f.name] | Literal["auto"], "auto")
        elif f.default_factory is not MISSING:
            columns[f.name] = (hints[f.name], Field(default_factory=f.default_factory))
        else:
            columns[f.name] = (hints[f.name], ... if f.default is MISSING else f.default)
    return create_model(made.__name__, __base__=Section, **columns)


# -- sentences

UNKNOWN, ABSENT = "extra_forbidden", "missing"
WANTED = {  # pydantic's kinds of error: "VALUE is not ..."
    "int_type": "a whole number", "int_from_float": "a whole number", "float_type": "a number",
    "finite_number": "a finite number", "bool_type": "true or false", "string_type": "a text", "list_type": "a list",
    "tuple_type": "a list", "dict_type": "a table of keys", "model_type": "a table of keys",
    "greater_than": "greater than {gt}", "greater_than_equal": "at least {ge}", "less_than": "less than {lt}",
    "less_than_equal": "at most {le}", "literal_error": "{expected}", "value_error": "{error}",
}  # fmt: skip


def dotted(path: Path_) -> str:
    return plain(".".join(map(str, path)))


def shown(value: Any) -> str:
    """A value as the recipe would write it."""
    if isinstance(value, str):
        return f"'{plain(value, 60)}'"
    text: str = yaml.dump(value, Dumper=Writer, default_flow_style=True, width=LIMIT)
    return plain(text.strip().removesuffix("\n..."), 60)


def mistakes(e: ValidationError, value: Any) -> Iterator[tuple[Path_, str]]:
    """(path, sentence) of pydantic's errors; those of the branches of one union as one."""
    groups: dict[Path_, list[Any]] = {}
    for error in e.errors(include_url=False)[: 2 * ENOUGH]:
        place, at = [], value
        for word in error["loc"]:  # also names branches of unions, which are no keys of the user's
            if (isinstance(at, dict) and word in at) or (isinstance(at, list) and isinstance(word, int)):
                at = at[word]  # type: ignore[index]
                place.append(word)
        if error["type"] == ABSENT:
            place.append(error["loc"][-1])
        groups.setdefault(tuple(place), []).append(error)
    for path, errors in groups.items():
        if any(len(other) > len(path) and other[: len(path)] == path for other in groups):
            continue  # the branch that was meant has the answer
        kinds = [error["type"] for error in errors]
        if UNKNOWN in kinds:
            yield path, UNKNOWN
        elif ABSENT in kinds:
            yield path, ABSENT
        else:
            yield path, f"{shown(errors[0]['input'])} {wanted(errors)}"


def wanted(errors: list[Any]) -> str:
    """is not ... or ..., of the branches' errors about one value."""
    value, phrases, choices = errors[0]["input"], [], []
    for error in errors:
        kind, context = error["type"], {k: bound(v) for k, v in error.get("ctx", {}).items()}
        phrases.append(WANTED[kind].format(**context) if kind in WANTED else f"as wanted ({error['msg']})")
        if kind == "literal_error":
            choices += re.findall(r"'([^']*)'", context["expected"])
    text = "is not " + " or ".join(dict.fromkeys(phrases))
    if isinstance(value, str) and (near := nearest(value, choices)):
        return text + near
    if isinstance(value, str) and WANTED["list_type"] in phrases:
        return f"{text} - write [{plain(value)}]"
    if isinstance(value, float) and value.is_integer() and phrases == [WANTED["int_type"]]:
        return f"{text} - write {int(value)}"
    return text


def bound(value: Any) -> str:
    """A limit as people write it: 0 for 0.0, 2**64 for its twenty digits."""
    if isinstance(value, int) and value > 2**32 and value & (value - 1) == 0:
        return f"2**{value.bit_length() - 1}"
    return f"{value:g}" if isinstance(value, float) else str(value)


def unknown(path: Path_, names: dict[str, list[str]]) -> str:
    """An unknown key's sentence: another tool's name is answered with ours, a typo with the nearest."""
    full, key = dotted(path), str(path[-1])
    word = key.lower().replace("-", "_")
    ours = FOREIGN.get(full) or FOREIGN.get(word)
    if ours and ours.partition(":")[0] != full:
        return f"{full}: unknown key - zoedge calls this '{ours}'"
    if word in WHY:
        return f"{full}: unknown key - {WHY[word]}"
    here = names.get(dotted(path[:-1]), [])
    near = nearest(key, here)
    if not near:  # the right word in the wrong place
        homes = [f"{section}.{key}".lstrip(".") for section, keys in names.items() if word in keys and word != "name"]
        near = f" - did you mean '{homes[0]}'?" if len(homes) == 1 else ""
    return f"{full}: unknown key{near or (' - there is: ' + ', '.join(here) if here else '')}"

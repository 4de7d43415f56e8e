"""What the user wrote: YAML read strictly, every mistake at once with file:line:column and the way out.

A section's keys are the fields of the class that uses it, and each default is written there alone. `model`, `data`,
`train`, `eval`, `log` and `output` are here; noise, estimator, rule, space and task are the parts' own classes.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import MISSING, asdict, dataclass, fields, is_dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, get_type_hints

import yaml
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, create_model

from .errors import UsageError, ZoedgeError, nearest, plain
from .load import FOLDERS, part

LIMIT, DEPTH = 64 << 10, 16
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
Place = tuple[int, int]  # line, column, from 1
Path_ = tuple[Any, ...]


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class Model(Section):
    """Which base, and how it is held and computed."""

    source: str
    revision: str | None = None
    quantization: Literal["nf4", "fp4", "int8", "none"] = "nf4"
    double_quant: bool = True
    compute_dtype: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    device: Literal["auto", "cpu", "cuda"] = "auto"
    threads: int | None = Field(None, ge=1, le=1024)


class Split(Section):
    """So many rows (or that share of them), taken by a hash of their text: equal texts never stand on both sides."""

    split: int | float = Field(gt=0)


class Data(Section):
    """Which rows. train, valid, test: a .jsonl, .csv or .parquet file, a packaged text, or a hub id."""

    train: str
    valid: str | Split | None = None
    test: str | Split | None = None
    fields: dict[str, str] = {}
    limit: int | None = Field(None, ge=1)
    max_length: int = Field(512, ge=2)
    on_overflow: Literal["error", "truncate", "drop"] = "error"
    skip_bad_lines: bool = False


class Train(Section):
    """How long. rows: token rows in one forward; a step with more points than fit takes several."""

    steps: int = Field(1000, ge=1, lt=2**31)
    batch: int = Field(16, ge=1)
    rows: int = Field(2048, ge=1)


class Eval(Section):
    """How often to look. calibrate: unlabelled training rows from which the label bias is taken."""

    every: int = Field(250, ge=1)
    at_start: bool = True
    calibrate: int = Field(256, ge=1)


class LogOptions(Section):
    """How often to sync, and to log the state's hash."""

    sync_every: int = Field(1, ge=1, le=4096)
    hash_every: int = Field(100, ge=1)


class Output(Section):
    """Where runs go, and what to write at the end."""

    dir: str = "runs"
    export: list[Literal["peft", "merged"]] = ["peft"]


SECTIONS: dict[str, type[Section]] = {
    "model": Model, "data": Data, "train": Train, "eval": Eval, "log": LogOptions, "output": Output,
}  # fmt: skip
REQUIRED = ("version", "model", "data")
FOREIGN = {
    "learning_rate": "rule.lr", "lr": "rule.lr", "lr_scheduler": "rule.schedule", "lr_scheduler_type": "rule.schedule",
    "lr_schedule": "rule.schedule", "optimizer": "rule", "optim": "rule", "zo_eps": "estimator.eps", "eps": "estimator.eps",
    "epsilon": "estimator.eps", "num_perturbations": "estimator.queries", "queries": "estimator.queries",
    "lora_r": "space.rank", "r": "space.rank", "lora_rank": "space.rank", "lora_alpha": "space.alpha",
    "lora_target_modules": "space.targets", "target_modules": "space.targets", "lora_layers": "space.layers",
    "num_layers": "space.layers", "base_model": "model.source", "model_name_or_path": "model.source",
    "model_name": "model.source", "load_in_4bit": "model.quantization: nf4", "load_in_8bit": "model.quantization: int8",
    "dtype": "model.compute_dtype", "torch_dtype": "model.compute_dtype", "iters": "train.steps",
    "max_steps": "train.steps", "num_steps": "train.steps", "num_epochs": "train.steps (steps, not epochs)",
    "micro_batch_size": "train.batch", "batch_size": "train.batch", "per_device_train_batch_size": "train.batch",
    "max_seq_length": "data.max_length", "sequence_len": "data.max_length", "cutoff_len": "data.max_length",
    "dataset": "data.train", "datasets": "data.train", "train_file": "data.train", "val_set_size": "data.valid: {split: N}",
    "eval_steps": "eval.every", "steps_per_eval": "eval.every", "output_dir": "output.dir", "adapter_path": "output.dir",
    "val_data": "data.valid", "template": "task.prompt", "labels": "task.options", "perturbation": "noise",
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

    def resolved(self) -> dict[str, Any]:
        """Every value, defaults included, as the YAML that would be read back to the same recipe."""
        table: dict[str, Any] = {"version": 1, "name": self.name, "seed": self.seed}
        for key, value in vars(self).items():
            if isinstance(value, Section):
                table[key] = value.model_dump()
            elif is_dataclass(value) and not isinstance(value, type):
                table[key] = {"name": word_of(value), **asdict(value)}
        return table

    def semantic(self) -> dict[str, Any]:
        """What decides the numbers. Not: names, folders, how often to look, where files lie (their content is digested)."""
        table = self.resolved()
        for key in ("name", "output", "eval"):
            del table[key]
        for section, keys in {
            "model": ("source", "revision", "device", "threads"),
            "data": ("train", "valid", "test", "fields", "limit", "skip_bad_lines", "max_length", "on_overflow"),
            "log": ("sync_every",),
        }.items():
            for key in keys:
                del table[section][key]
        return table


def word_of(value: Any) -> str:
    """The recipe's word for a part: its file's name."""
    return type(value).__module__.rpartition(".")[2]


# -- YAML, strictly


class Strict(yaml.SafeLoader):
    """YAML 1.2's floats and booleans; no anchors, aliases, tags, merge keys, duplicates; at most DEPTH deep."""

    def __init__(self, text: str, where: str):
        super().__init__(text)
        self.where, self.depth = where, 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        event = self.peek_event()
        at = f"{self.where}:{event.start_mark.line + 1}:{event.start_mark.column + 1}"
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None):
            raise UsageError(f"{at}: anchors and aliases are not read. Write the value out.")
        if getattr(event, "tag", None):
            raise UsageError(f"{at}: the tag {event.tag} is not read. Remove it.")
        self.depth += 1
        if self.depth > DEPTH:
            raise UsageError(f"{at}: nested more than {DEPTH} deep.")
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node


Strict.yaml_implicit_resolvers = {
    first: [(tag, regexp) for tag, regexp in found if tag.endswith((":null",))]
    for first, found in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
Strict.add_implicit_resolver("tag:yaml.org,2002:bool", re.compile(r"^(?:true|True|TRUE|false|False|FALSE)$"), list("tTfF"))
Strict.add_implicit_resolver("tag:yaml.org,2002:int", re.compile(r"^[-+]?(?:0|[1-9][0-9]*)$"), list("-+0123456789"))
Strict.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?$|^[-+]?\.(?:inf|nan)$", re.I),
    list("-+0123456789."),
)


def read_yaml(text: str, where: str) -> tuple[Any, dict[Path_, Place]]:
    """(value, path -> place) of strict YAML. UsageError with file:line:column."""
    if len(text.encode()) > LIMIT:
        raise UsageError(f"{where}: larger than {LIMIT >> 10} KiB: not a recipe.")
    loader = Strict(text, where)
    marks: dict[Path_, Place] = {}
    try:
        node = loader.get_single_node()
    except yaml.MarkedYAMLError as e:
        mark = e.problem_mark or e.context_mark
        at = f":{mark.line + 1}:{mark.column + 1}" if mark else ""
        raise UsageError(f"{where}{at}: not valid YAML: {e.problem or e.context}.") from None
    except yaml.YAMLError as e:
        raise UsageError(f"{where}: not valid YAML: {plain(str(e))}") from None
    return (build(node, (), marks, where, loader) if node is not None else None), marks


def build(node: Any, path: Path_, marks: dict[Path_, Place], where: str, loader: Strict) -> Any:
    marks.setdefault(path, (node.start_mark.line + 1, node.start_mark.column + 1))
    if isinstance(node, yaml.SequenceNode):
        return [build(n, (*path, i), marks, where, loader) for i, n in enumerate(node.value)]
    if isinstance(node, yaml.MappingNode):
        table: dict[Any, Any] = {}
        for k, v in node.value:
            at = (k.start_mark.line + 1, k.start_mark.column + 1)
            if not isinstance(k, yaml.ScalarNode):
                raise UsageError(f"{where}:{at[0]}:{at[1]}: a key must be a word.")
            key = k.value
            if key in table:
                raise UsageError(f"{where}:{at[0]}:{at[1]}: '{plain(key)}' stands twice.")
            marks[(*path, key)] = at
            table[key] = build(v, (*path, key), marks, where, loader)
        return table
    value = loader.construct_object(node)
    if node.tag.endswith(":float"):
        value = float(node.value.replace(".inf", "inf").replace(".nan", "nan"))
    return value


# -- from YAML to a recipe


def find(name: str) -> Path:
    """A recipe's file: a path, else a shipped recipe's name."""
    if Path(name).is_file():
        return Path(name)
    shipped_names = {p.stem: p for p in shipped()}
    if (stem := name.removesuffix(".yaml")) in shipped_names:
        return shipped_names[stem]
    raise UsageError(
        f"No recipe '{name}': no such file, and not a shipped one ({', '.join(shipped_names)})"
        f"{nearest(stem, shipped_names)}"
    )


def shipped() -> list[Path]:
    """The recipes that come with zoedge: beside the package in a checkout, inside it once installed."""
    here = Path(__file__).parent
    for folder in (here / "recipes", here.parent / "recipes"):
        if folder.is_dir():
            return sorted(folder.glob("*.yaml"))
    return []


def read(name: str, overrides: list[str] | None = None) -> Recipe:
    """A recipe from a file (or a shipped name) and `key=value` overrides. UsageError lists every mistake at once."""
    path = find(name)
    raw = path.read_bytes()[: LIMIT + 1]
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as e:
        raise UsageError(f"{path}: not UTF-8 text (byte {e.start}).") from None
    table, marks = read_yaml(text, str(path))
    if not isinstance(table, dict):
        raise UsageError(f"{path}: a recipe is a table of keys and values; see `zoedge recipes show quickstart`.")
    for override in overrides or []:
        apply(table, marks, override)
    table.setdefault("name", re.sub(r"[^A-Za-z0-9._-]", "-", path.stem))
    return check(table, marks, str(path))


def apply(table: dict[str, Any], marks: dict[Path_, Place], override: str) -> None:
    """Set `a.b=value`; the value is YAML. A bare word is turned into a table where a key of it is set."""
    key, equals, text = override.partition("=")
    path = tuple(key.split("."))
    if not equals or not all(path):
        raise UsageError(f"'{override}' is not key=value, such as rule.lr=1e-3.")
    value, _ = read_yaml(text, f"'{override}'") if text.strip() else (None, {})
    for word in path[:-1]:
        inner = table.get(word)
        if inner is None:
            inner = {}
        elif isinstance(inner, str) and word in FOLDERS:
            inner = {"name": inner}
        elif not isinstance(inner, dict):
            raise UsageError(f"'{override}': {word} is not a table of keys.")
        table[word] = inner
        table = inner
    table[path[-1]] = value
    for i in range(len(path), 0, -1):
        marks[path[:i]] = (0, 0)


def check(table: dict[str, Any], marks: dict[Path_, Place], where: str) -> Recipe:
    """The recipe of a table; every mistake is collected before one UsageError is raised."""
    wrong: list[tuple[Place, str]] = []

    def fault(path: Path_, what: str) -> None:
        place = next((marks[path[:i]] for i in range(len(path), -1, -1) if path[:i] in marks), (0, 0))
        at = f"{where}:{place[0]}:{place[1]}" if place[0] else f"{where} (key=value)"
        wrong.append((place, f"{at}: {what}"))

    known = ("version", "name", "seed", *SECTIONS, *FOLDERS)
    for key in table:
        if key not in known:
            fault((key,), unknown("", key, known))
    for key in REQUIRED:
        if key not in table:
            fault((), f"{key}: missing." + (" Write 'version: 1'." if key == "version" else ""))
    if "version" in table and table["version"] != 1:
        fault(("version",), f"version: {table['version']!r} is not one that this zoedge reads (1).")
    parts: dict[str, Any] = {}
    for key, kind in {"name": TypeAdapter(Name), "seed": TypeAdapter(Annotated[int, Field(ge=0, lt=2**64, strict=True)])}.items():
        parts[key] = validated(kind, table.get(key, 0 if key == "seed" else "run"), (key,), fault)
    for key, section in SECTIONS.items():
        if key in table or key not in REQUIRED:
            value = table.get(key)
            parts[key] = validated(TypeAdapter(section), {} if value is None else value, (key,), fault)
    for kind in FOLDERS:
        parts[kind] = build_part(kind, table.get(kind, DEFAULTS[kind]), fault)
    if wrong:
        raise UsageError("\n".join(text for _, text in sorted(wrong)))
    return Recipe(**parts)


DEFAULTS = {"noise": "rademacher", "estimator": "two_sided", "rule": "sgd", "space": "lora", "task": "classify"}


def build_part(kind: str, value: Any, fault: Any) -> Any:
    """A part from `word` or `{name: word, ...fields}`."""
    options = {"name": value} if isinstance(value, str) else value
    if not isinstance(options, dict) or not isinstance(word := options.get("name", DEFAULTS[kind]), str):
        fault((kind,), f"{kind}: write a word, or a table such as {{name: {DEFAULTS[kind]}, ...}}.")
        return None
    try:
        made = part(kind, word)
    except ZoedgeError as e:
        fault((kind, "name"), str(e))
        return None
    rest = {k: v for k, v in options.items() if k != "name"}
    checked = validated(TypeAdapter(schema(made)), rest, (kind,), fault)
    try:
        return checked and made(**vars(checked))
    except ValueError as e:
        fault((kind,), f"{kind}.{e}.")
    return None


def schema(made: type[Any]) -> type[Section]:
    """A part's fields as a section: pydantic checks dataclasses strictly only when it is handed instances."""
    hints = get_type_hints(made, include_extras=True)
    columns: Any = {
        f.name: (hints[f.name], Field(f.default) if f.default is not MISSING else Field(default_factory=f.default_factory))
        for f in fields(made)
    }
    return create_model(made.__name__, __base__=Section, **columns)


def validated(kind: TypeAdapter[Any], value: Any, path: Path_, fault: Any) -> Any:
    try:
        return kind.validate_python(value)
    except ValidationError as e:
        for error in merged(e):
            place = (*path, *error["loc"])
            name = ".".join(str(p) for p in place)
            if error["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
                names = list(kind._type.model_fields)
                fault(place, unknown(".".join(map(str, place[:-1])), str(place[-1]), names))
            elif error["type"] in ("missing", "missing_argument"):
                fault(path, f"{name}: missing.")
            else:
                fault(place, f"{name}: {plain(repr(error['input']))}: {error['msg'][:1].lower()}{error['msg'][1:]}.")
    except ZoedgeError as e:
        fault(path, f"{'.'.join(map(str, path))}: {e}")
    return None


def merged(e: ValidationError) -> Iterator[dict[str, Any]]:
    """pydantic's errors, those of the branches of one union as one."""
    groups: dict[Path_, list[Any]] = {}
    for error in e.errors(include_url=False):
        loc = tuple(p for p in error["loc"] if not isinstance(p, str) or re.fullmatch(r"[a-z_][a-z_0-9 -]*", p))
        loc = tuple(p for p in loc if p not in ("str", "int", "float") and not str(p).startswith(("literal", "list", "dict")))
        groups.setdefault(loc, []).append(error)
    for loc, errors in groups.items():
        text = " or ".join(dict.fromkeys(x["msg"].removeprefix("Value error, ") for x in errors))
        yield {**errors[0], "loc": loc, "msg": text}


def unknown(section: str, key: str, names: Any) -> str:
    """An unknown key's sentence: another tool's name is answered with ours, a typo with the nearest."""
    full = f"{section}.{key}" if section else key
    if key in FOREIGN and FOREIGN[key].partition(":")[0] != full:
        return f"{plain(full)}: unknown key - zoedge calls this '{FOREIGN[key]}'."
    return f"{plain(full)}: unknown key{nearest(key, names) or ' - there is: ' + ', '.join(map(str, names)) + '.'}"


def dump(recipe: Recipe) -> str:
    """The resolved recipe as YAML."""
    return yaml.safe_dump(recipe.resolved(), sort_keys=False, allow_unicode=True, width=120)

"""Another tool's configuration as a recipe, and a list of what in it means something else here, or nothing.

Every key is carried, changed in meaning, or left out with a reason: `convert` loses none. What is carried passes the
recipe's own checker, value by value. Keys are those that mlx-lm, axolotl and LLaMA-Factory document.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterable
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ...errors import DataError, UsageError, nearest, plain
from ...recipe.check import Writer, check, read_yaml, shown, text_of
from ...recipe.foreign import FOREIGN, WHY

MARKS = {  # keys that only one of the three has
    "mlx-lm": (
        "iters", "lora_parameters", "fine_tune_type", "adapter_path", "num_layers", "lora_layers", "steps_per_eval",
        "steps_per_report", "grad_checkpoint", "mask_prompt", "val_batches", "test_batches", "resume_adapter_file", "model",
        "data", "train", "hf_dataset", "save_every", "lr_schedule",
    ),
    "axolotl": (
        "base_model", "datasets", "sequence_len", "micro_batch_size", "num_epochs", "adapter", "lora_r", "lora_target_linear",
        "val_set_size", "sample_packing", "dataset_prepared_path", "lora_target_modules", "load_in_4bit", "load_in_8bit",
        "flash_attention", "tokenizer_type", "model_type", "saves_per_epoch", "evals_per_epoch", "lr_scheduler",
    ),
    "llama-factory": (
        "model_name_or_path", "stage", "finetuning_type", "template", "cutoff_len", "dataset", "dataset_dir", "lora_rank",
        "lora_target", "val_size", "do_train", "max_samples", "per_device_train_batch_size", "num_train_epochs",
        "overwrite_cache", "preprocessing_num_workers", "plot_loss", "quantization_bit",
    ),
}  # fmt: skip
TEMPLATES = {"chatml": "chatml", "llama2": "llama2", "empty": "plain", "plain": "plain"}
SCHEDULES = {
    "constant": "constant", "linear": "linear", "cosine": "cosine", "cosine_decay": "cosine", "linear_schedule": "linear",
    "constant_with_warmup": "constant",
}  # fmt: skip
CUT = "longer rows are cut from the left, so that the answer stays"
STEPS = "a step here is two forward passes and learns less than a step of backpropagation: expect to need more of them"


@dataclass
class Import:
    """carried: (key, where to). changed, lost: (key, its value, what became of it, or why nothing did)."""

    tool: str
    table: dict[str, Any]
    carried: list[tuple[str, str]] = field(default_factory=list)
    changed: list[tuple[str, Any, str]] = field(default_factory=list)
    lost: list[tuple[str, Any, str]] = field(default_factory=list)
    unset: list[str] = field(default_factory=list)

    def report(self) -> list[str]:
        """What became of every key, a line each."""
        lines = [f"from {self.tool}" + (f"; not set in it: {plain(', '.join(self.unset), 400)}" if self.unset else "")]
        lines += ["", "carried:", *(f"  {key} -> {to}" for key, to in self.carried)]
        for title, found in (("changed in meaning", self.changed), ("not carried", self.lost)):
            if found:
                lines += ["", f"{title}:", *(f"  {key}: {shown(value)} - {why}" for key, value, why in found)]
        return [plain(line, 500) for line in lines]


def load(path: Path) -> dict[str, Any]:
    """A configuration file's table, YAML or JSON. UsageError: it is none."""
    text = text_of(path)
    if path.suffix.lower() == ".json":
        try:
            table = json.loads(text)
        except (ValueError, RecursionError) as e:
            raise UsageError(f"{path}: not valid JSON: {plain(str(e))}.") from None
    else:
        table, _ = read_yaml(text, str(path))
    if not isinstance(table, dict) or not table:
        raise UsageError(f"{path}: not a configuration: a table of keys and values.")
    return table


def recognised(table: dict[str, Any], where: str) -> str:
    """The tool whose keys these are. UsageError: none's, or two tools'."""
    counts = {tool: sum(key in table for key in keys) for tool, keys in MARKS.items()}
    best, second = sorted(counts.values(), reverse=True)[:2]
    if "version" in table and isinstance(table.get("model"), dict):
        raise UsageError(f"{where}: this is a recipe of zoedge's already: zoedge finetune {where}")
    if best < 2 or best == second:
        raise UsageError(
            f"{where}: cannot tell which tool's this is (keys: {plain(', '.join(map(str, table)))}). Say it: --from "
            f"{' | '.join(MARKS)}."
        )
    return max(counts, key=counts.__getitem__)


def convert(table: dict[str, Any], tool: str, where: str) -> Import:
    """The recipe that a tool's configuration comes to. UsageError: it names no base model or no rows."""
    if tool not in TOOLS:
        raise UsageError(f"--from: '{plain(tool)}' is not {', '.join(TOOLS)}{nearest(tool, TOOLS) or '.'}")
    source = Source(table, where, tool)
    TOOLS[tool](source)
    source.rest()
    return source.out


def dump(found: Import, where: str) -> str:
    """The recipe as YAML; what is not in it is zoedge's default."""
    import yaml

    name = plain(Path(where).name)
    head = f"# From {found.tool}'s {name} by `zoedge import-config`; `zoedge schema` has every key.\n"
    text = yaml.dump(
        found.table, Dumper=Writer, sort_keys=False, allow_unicode=True, width=120, default_flow_style=None
    )
    return head + text


class Source:
    """A configuration being read, and the recipe being written."""

    def __init__(self, table: dict[str, Any], where: str, tool: str):
        self.where, self.left = where, dict(flat(table))
        self.given = set(self.left)
        self.out = Import(tool, {"version": 1, "model": {"source": "?"}, "data": {"train": "?"}})
        for key in [key for key, value in self.left.items() if value is None or value in ("", [], {})]:
            self.out.unset.append(key)
            del self.left[key]

    def take(self, *keys: str) -> Any:
        """The first of these keys that is set, which is then dealt with; None."""
        return next((self.left.pop(key) for key in keys if key in self.left), None)

    def put(self, key: str, place: str, value: Any, note: str = "", given: Any = None) -> bool:
        """Write a value into the recipe, if its checker takes it; note: how its meaning is another now."""
        draft = deepcopy(self.out.table)
        into = draft
        *path, last = place.split(".")
        for word in path:
            inner = into.get(word)
            into[word] = inner = {"name": inner} if isinstance(inner, str) else {} if inner is None else inner
            into = inner
        into[last] = value
        given = value if given is None else given
        try:
            check(draft, {}, "it")
        except UsageError as e:
            why = str(e).splitlines()[0].removeprefix("it: ").rstrip(".")
            self.out.lost.append((key, given, f"the recipe does not take it: {why}"))
            return False
        self.out.table = draft
        self.out.carried.append((key, f"{place}: {shown(value)}"))
        if note:
            self.out.changed.append((key, given, note))
        return True

    def carry(self, key: str, place: str, made: Callable[[Any], Any] = lambda x: x, note: str = "") -> Any:
        """The value of a key, written to its place in the recipe; None: it is not set."""
        if (value := self.take(key)) is not None:
            self.put(key, place, made(value), note, value)
        return value

    def lose(self, key: str, why: str, value: Any = None) -> None:
        if key in self.left or value is not None:
            self.out.lost.append((key, self.left.pop(key, value), why))

    def change(self, key: str, value: Any, how: str) -> None:
        self.out.changed.append((key, value, how))

    def rest(self) -> None:
        """Everything that nothing above has dealt with: its reason, or that zoedge does not know it."""
        for key, value in self.left.items():
            word = re.sub(r"\.\d+", "", key)
            for part in reversed(word.split(".")):
                if part in WHY:
                    why = WHY[part]
                    break
            else:
                ours = FOREIGN.get(word.rpartition(".")[2])
                why = f"near to it is {ours}" if ours else f"not one of {self.out.tool}'s keys that zoedge knows"
            self.out.lost.append((key, value, why))
        self.left = {}
        for found in (self.out.carried, self.out.changed, self.out.lost):  # in brackets: not set there, and yet decided
            found[:] = [(key if key in self.given or key[0] == "(" else f"({key})", *more) for key, *more in found]  # type: ignore

    # -- what all three have

    def base(self, *keys: str) -> None:
        if not isinstance(value := self.take(*keys), str):
            raise UsageError(f"{self.where}: no base model ({keys[0]}), so there is nothing to make a recipe of.")
        self.put(keys[0], "model.source", value)
        if re.search(r"mlx-community|-[48]bit$|-(gptq|awq)|gguf", value, re.IGNORECASE):
            self.change(keys[0], value, "zoedge quantises a 16-bit model itself: name that one in model.source")

    def train(self, key: str, value: Any) -> None:
        if not isinstance(value, str):
            raise UsageError(f"{self.where}: no rows to train on ({key}), so there is nothing to make a recipe of.")
        self.put(key, "data.train", value)

    def first_order(self, rate: str, optimizer: str) -> None:
        """What belongs to gradients: the rate is never carried."""
        if (value := self.take(rate)) is not None:
            how = (
                "a first-order rate is not a zeroth-order one: rule.lr and estimator.eps are left at zoedge's defaults"
            )
            self.change(rate, value, how)
        self.lose(optimizer, WHY["optim_args"])

    def schedule(self, key: str) -> None:
        if (value := self.take(key)) is not None:
            if (ours := SCHEDULES.get(value if isinstance(value, str) else "")) is None:
                self.lose(key, WHY["warmup"], value)
            else:
                self.put(key, "rule.schedule", ours, "" if ours == value else f"{ours}, without a warm-up", value)

    def precision(self) -> None:
        for key, ours in {
            "bf16": "bf16",
            "bfloat16": "bf16",
            "pure_bf16": "bf16",
            "fp16": "fp16",
            "float16": "fp16",
        }.items():
            if (value := self.take(key)) is not None:
                if value is True:
                    self.put(key, "model.compute_dtype", ours, given=value)
                else:
                    self.out.carried.append((key, "model.compute_dtype: auto" if value == "auto" else "as it is"))

    def batch(self, one: str, times: str) -> int:
        """train.batch = the device's batch x accumulated ones; returns it."""
        size, more = self.take(one), self.take(times)
        whole = (size if isinstance(size, int) else 1) * (more if isinstance(more, int) else 1)
        if size is not None or more is not None:
            note = (
                f"{one} x {times}: the whole batch of a step, on one device"
                if isinstance(more, int) and more > 1
                else ""
            )
            self.put(one, "train.batch", whole, note, size)
            if more is not None:
                self.out.carried.append((times, f"train.batch: {whole}"))
        return whole

    def steps(self, steps: str, epochs: str, batch: int) -> None:
        """train.steps: their number, or epochs x rows / batch where the rows are here to be counted."""
        number, times = self.take(steps), self.take(epochs)
        if isinstance(number, int) and number > 0:
            self.put(steps, "train.steps", number, STEPS)
            if times is not None:
                self.change(epochs, times, f"{steps} comes before it, as there")
        elif number is not None:
            self.out.carried.append((steps, "no limit"))
        if times is not None and not (isinstance(number, int) and number > 0):
            rows = self.rows()
            if rows and isinstance(times, (int, float)) and times > 0:
                made = max(1, math.ceil(rows * times / max(1, batch)))
                self.put(
                    epochs,
                    "train.steps",
                    made,
                    f"{times:g} epochs of {rows:,} rows in batches of {batch} are {made:,} steps; {STEPS}",
                    times,
                )
            else:
                self.change(
                    epochs,
                    times,
                    f"train.steps are steps, not epochs (rows x epochs / batch); left at the default: {STEPS}",
                )

    def rows(self) -> int:
        """How many training rows there are, if they are here."""
        from ...recipe.check import Data
        from ...scoring.rows.sets import rows_of

        data = self.out.table["data"]
        try:
            if not Path(data["train"].partition(":")[0]).expanduser().exists():
                return 0
            return min(
                len(rows_of(data["train"], "data.train", Data(**data | {"valid": None}))[0]), data.get("limit") or 2**63
            )
        except DataError:
            return 0

    def alike(self) -> str:
        """The task that the training rows are for, if they are here: lm of texts, else chat."""
        from ...recipe.check import Data
        from ...scoring.rows.formats import formats_of
        from ...scoring.rows.sets import rows_of

        data = self.out.table["data"]
        try:
            rows = rows_of(data["train"], "data.train", Data(train=data["train"]))[0] if self.rows() else []
        except DataError:
            return ""
        if not rows:
            return ""
        if any(formats_of(row) for row in rows):
            return "chat"
        return "lm" if all("text" in row.fields for row in rows) else ""

    def holdout(self, key: str) -> None:
        value = self.take(key)
        if value in (0, 0.0):
            self.out.carried.append((key, "no validation rows"))
        elif value is not None:
            self.put(
                key, "data.valid.split", int(value) if isinstance(value, float) and value >= 1 else value, given=value
            )

    def targets(self, key: str, value: Any) -> None:
        """Module names: the last word of each, once; all where the tool says so."""
        names = value.split(",") if isinstance(value, str) else value
        if not isinstance(names, list) or names in (["all"], ["all-linear"]):
            self.put(key, "space.targets", "all", given=value)
            return
        self.put(
            key,
            "space.targets",
            list(dict.fromkeys(str(name).strip().rpartition(".")[2] for name in names)),
            given=value,
        )

    def whole(self) -> None:
        """All weights, which only an unquantised base has."""
        self.out.table["model"]["quantization"] = "none"
        self.put("(all weights)", "space", "full")

    def kept(self, keys: Iterable[str], how: str) -> None:
        for key in keys:
            if key in self.left:
                self.left.pop(key)
                self.out.carried.append((key, how))


def flat(table: dict[str, Any], before: str = "") -> Iterable[tuple[str, Any]]:
    """Dotted keys of nested tables, and of tables in lists, with what they hold."""
    for key, value in table.items():
        here = f"{before}{key}"
        if isinstance(value, dict) and value:
            yield from flat(value, f"{here}.")
        elif isinstance(value, list) and value and all(isinstance(item, dict) for item in value):
            for i, item in enumerate(value):
                yield from flat(item, f"{here}.{i}.")
        else:
            yield here, value


# -- the tools


def mlx_lm(s: Source) -> None:
    s.base("model")
    name = s.take("hf_dataset.name", "hf_dataset.path", "hf_dataset.0.name", "hf_dataset.0.path")
    if name is not None:
        s.train("hf_dataset.name", name)
        s.lose("data", "hf_dataset comes before it")
        for theirs, ours in {
            "prompt_feature": "prompt",
            "completion_feature": "completion",
            "chat_feature": "messages",
        }.items():
            for key in (f"hf_dataset.{theirs}", f"hf_dataset.0.{theirs}"):
                s.carry(key, f"data.fields.{ours}")
    else:
        s.train("data", s.take("data") or "data")
    text = s.take("hf_dataset.text_feature", "hf_dataset.0.text_feature")
    kind = "lm" if text else s.alike()
    s.put("(rows)", "task", kind or "chat")
    if not kind:
        s.change(
            "data",
            s.out.table["data"]["train"],
            "rows of messages or completions are taken (task: chat); for plain text: task: lm",
        )
    if text and text != "text":
        s.put("hf_dataset.text_feature", "task.text", text)
    how = s.take("fine_tune_type") or "lora"
    if how == "full":
        s.whole()
        s.lose("num_layers", "all weights of all layers are trained; space: {name: lora, layers: last N} has a choice")
    else:
        s.out.carried.append(("fine_tune_type", "space: lora"))
        s.put("(method)", "space.name", "lora")
        if how != "lora":
            s.change("fine_tune_type", how, "plain LoRA: the adapter that PEFT, vLLM and llama.cpp load")
        for key in ("num_layers", "lora_layers"):
            s.carry(key, "space.layers", lambda n: "all" if n in (-1, 0) else f"last {n}")
        rank = s.carry("lora_parameters.rank", "space.rank")
        if (scale := s.take("lora_parameters.scale")) is not None and isinstance(scale, (int, float)):
            alpha = scale * (rank if isinstance(rank, int) else 8)
            s.put(
                "lora_parameters.scale", "space.alpha", alpha, f"mlx-lm's scale is alpha / rank: alpha {alpha:g}", scale
            )
            s.lose("lora_parameters.alpha", "the scale is what mlx-lm uses")
        s.carry("lora_parameters.alpha", "space.alpha")
        if (keys := s.take("lora_parameters.keys")) is not None:
            s.targets("lora_parameters.keys", keys)
    s.carry("batch_size", "train.batch")
    s.carry("iters", "train.steps", note=STEPS)
    s.carry("seed", "seed")
    if (length := s.carry("max_seq_length", "data.max_length")) is not None:
        s.put("max_seq_length", "data.on_overflow", "truncate", CUT, length)
    s.carry("steps_per_eval", "eval.every")
    s.carry("adapter_path", "output.dir", note="runs lie in it, each with its log and its adapter")
    s.first_order("learning_rate", "optimizer")
    s.schedule("lr_schedule.name")
    s.lose("lr_schedule.arguments", WHY["warmup"])
    s.kept(["train"], "zoedge finetune")
    s.kept(["test"], "test.jsonl of the folder is scored at the end, if it is there")
    if (mask := s.take("mask_prompt")) is not True:
        s.change("mask_prompt", bool(mask), "only the assistant's answers are scored; mlx-lm scores the question too")
    else:
        s.out.carried.append(("mask_prompt", "the assistant's answers are scored alone"))
    s.change("(quantisation)", None, "mlx-lm takes a model as it is; model.quantization is left at nf4")


def axolotl(s: Source) -> None:
    s.base("base_model")
    s.carry("revision_of_model", "model.revision")
    quantised = "nf4" if s.take("load_in_4bit") else "int8" if s.left.get("load_in_8bit") else "none"
    adapter = s.take("adapter")
    if adapter == "qlora" and quantised == "none":
        quantised = "nf4"
    s.kept(["load_in_8bit"], f"model.quantization: {quantised}")
    s.put("load_in_4bit", "model.quantization", quantised)
    s.carry("bnb_config_kwargs.bnb_4bit_quant_type", "model.quantization")
    s.carry("bnb_config_kwargs.bnb_4bit_use_double_quant", "model.double_quant")
    rows_of_axolotl(s)
    if adapter in ("lora", "qlora"):
        s.put("adapter", "space.name", "lora", given=adapter)
        s.carry("lora_r", "space.rank")
        s.carry("lora_alpha", "space.alpha")
        linear, names = s.take("lora_target_linear"), s.take("lora_target_modules")
        if linear:
            s.targets("lora_target_linear", "all")
            if names:
                s.lose("lora_target_modules", "lora_target_linear names them all", names)
        elif names:
            s.targets("lora_target_modules", names)
        if linear is False:
            s.out.carried.append(("lora_target_linear", "space.targets"))
        s.carry("peft_layers_to_transform", "space.layers", lambda x: [x] if isinstance(x, int) else x)
    else:
        s.whole()
        for key in ("lora_r", "lora_alpha", "lora_target_modules", "lora_target_linear", "peft_layers_to_transform"):
            s.lose(key, "all weights are trained: adapter is not set")
        if adapter is not None:
            s.lose("adapter", "adapters are LoRA, prompt or prefix: see `zoedge schema --field space`", adapter)
    if s.carry("sequence_len", "data.max_length") is not None:
        how = s.take("excess_length_strategy")
        key, cut = "excess_length_strategy" if how else "sequence_len", how == "truncate"
        s.put(key, "data.on_overflow", "truncate" if cut else "drop", CUT if cut else "")
    s.holdout("val_set_size")
    s.steps("max_steps", "num_epochs", s.batch("micro_batch_size", "gradient_accumulation_steps"))
    s.carry("seed", "seed")
    s.carry("output_dir", "output.dir", note="runs lie in it, each with its log and its adapter")
    s.carry("wandb_name", "name")
    if isinstance(s.left.get("eval_steps"), int):
        s.carry("eval_steps", "eval.every")
    s.first_order("learning_rate", "optimizer")
    s.schedule("lr_scheduler")
    s.carry("weight_decay", "rule.weight_decay")
    s.precision()
    if s.take("train_on_inputs"):
        s.change("train_on_inputs", True, "only the assistant's answers are scored (of plain text, everything)")
    else:
        s.out.carried.append(("train_on_inputs", "the assistant's answers are scored alone"))
    template(s, "chat_template", "datasets.0.chat_template")
    if s.take("load_best_model_at_end") and "valid" in s.out.table["data"]:
        s.put("load_best_model_at_end", "eval.select", "best", given=True)


def rows_of_axolotl(s: Source) -> None:
    """The first data set; others are listed."""
    path, files = s.take("datasets.0.path"), s.take("datasets.0.data_files")
    name, split = s.take("datasets.0.name"), s.take("datasets.0.split")
    if files is not None:
        files = files if isinstance(files, list) else [files]
        s.out.carried.append(("datasets.0.path", f"data.train: {plain(str(files[0]))}"))
        for extra in files[1:]:
            s.lose("datasets.0.data_files", "one file of rows: join them first", extra)
        path = files[0]
    elif isinstance(path, str) and (name or split not in (None, "train")) and not Path(path).expanduser().exists():
        path = f"{path}:{'/'.join(filter(None, (name, split or 'train')))}"
    elif name is not None:
        s.lose("datasets.0.name", "a local file has no configurations", name)
    s.train("datasets.0.path", path)
    for key, value in (("datasets.0.split", split), ("datasets.0.name", name)):
        if value is not None and (key, value) not in [(k, v) for k, v, _ in s.out.lost]:
            s.out.carried.append((key, f"data.train: {plain(path)}"))
    s.kept(["datasets.0.ds_type"], "told by the file's ending")
    kind = s.take("datasets.0.type")
    kind = kind.partition(":")[0].partition(".")[0] if isinstance(kind, str) else None
    custom = any(key.startswith("datasets.0.type.") for key in s.left)
    if kind == "completion":
        s.put("datasets.0.type", "task", "lm")
        s.carry("datasets.0.field", "task.text")
    else:
        s.put("datasets.0.type", "task", "chat", given=kind or "-")
        forms = {"alpaca": "alpaca", "sharegpt": "sharegpt"}
        if kind in forms:
            s.put("datasets.0.type", "data.format", forms[kind], given=kind)
            if kind == "alpaca":
                s.change(
                    "datasets.0.type",
                    kind,
                    "the instruction is a user's turn of the chat template, not Alpaca's own page",
                )
        elif kind not in (None, "chat_template") or custom:
            s.change(
                "datasets.0.type",
                kind or "(a prompt of its own)",
                "the chat template writes the turns; a row's format is told by its keys",
            )
        for theirs, ours in {
            "field_instruction": "instruction",
            "field_input": "input",
            "field_output": "output",
        }.items():
            value = s.take(f"datasets.0.type.{theirs}", f"datasets.0.{theirs}")
            if value not in (None, ours):
                s.put(f"datasets.0.{theirs}", f"data.fields.{ours}", value)
            elif value is not None:
                s.out.carried.append((f"datasets.0.{theirs}", ours))
        field_ = s.take("datasets.0.field_messages")
        if field_ in ("messages", "conversations"):
            s.out.carried.append(("datasets.0.field_messages", "told by the rows' keys"))
        elif field_ is not None:
            s.put("datasets.0.field_messages", "data.fields.messages", field_)
    test = s.take("test_datasets.0.path")
    files = s.take("test_datasets.0.data_files")
    if test or files:
        s.put("test_datasets.0.path", "data.valid", (files[0] if isinstance(files, list) else files) or test)
        for key in [key for key in s.left if key.startswith("test_datasets.0.")]:
            s.kept([key], "as the training rows")
    for key in [key for key in s.left if re.match(r"(test_)?datasets\.[1-9]", key)]:
        s.lose(key, "one set of rows: join the files, or list them as FOLDER:A,B of a dataset_info.json")


def template(s: Source, *keys: str) -> None:
    """The chat template that a name stands for: one that is built in, else the tokenizer's own."""
    for key in keys:
        if (value := s.take(key)) is None:
            continue
        if s.out.table.get("task") == "lm" or (
            isinstance(s.out.table.get("task"), dict) and s.out.table["task"]["name"] == "lm"
        ):
            s.lose(key, "plain text has no template", value)
        elif value in TEMPLATES:
            s.put(key, "task.format", TEMPLATES[value], given=value)
        elif value in ("tokenizer_default", "default"):
            s.out.carried.append((key, "task.format: own"))
        elif value == "jinja":
            s.change(key, value, "write the template to a file, and name it: task.format: FILE.jinja")
        else:
            s.change(
                key,
                value,
                "the tokenizer's own chat template is used (task.format: own); a base without one wants chatml",
            )
    if (text := s.take("chat_template_jinja")) is not None:
        if isinstance(text, str) and text.endswith(".jinja"):
            s.put("chat_template_jinja", "task.format", text)
        else:
            s.change("chat_template_jinja", text, "write the template to a file, and name it: task.format: FILE.jinja")


def llama_factory(s: Source) -> None:
    s.base("model_name_or_path")
    s.carry("model_revision", "model.revision")
    bits = s.take("quantization_bit")
    s.put("quantization_bit", "model.quantization", {4: "nf4", 8: "int8"}.get(bits, "none"), given=bits or "-")
    if bits == 4:
        s.carry("quantization_type", "model.quantization")
        s.carry("double_quantization", "model.double_quant")
    elif bits not in (None, 4, 8):
        s.change("quantization_bit", bits, "4 or 8 bits; the base is left as it is")
    folder = s.take("dataset_dir") or "data"
    name, other = s.take("dataset"), s.take("eval_dataset")
    name, other = (",".join(map(str, x)) if isinstance(x, list) else x for x in (name, other))
    spaced = lambda text: ",".join(part.strip() for part in text.split(","))
    s.train("dataset", f"{folder}:{spaced(name)}" if isinstance(name, str) else None)
    s.out.carried.append(("dataset_dir", f"data.train: {plain(str(folder))}:..."))
    if isinstance(other, str):
        s.put("eval_dataset", "data.valid", f"{folder}:{spaced(other)}")
    stage = s.take("stage") or "sft"
    s.put("stage", "task", "lm" if stage == "pt" else "chat", given=stage)
    if stage not in ("sft", "pt"):
        s.change("stage", stage, f"{WHY['rl']}: this is supervised fine-tuning")
    template(s, "template")
    how = s.take("finetuning_type") or "lora"
    if how == "full":
        s.whole()
    else:
        s.put(
            "finetuning_type",
            "space.name",
            "lora",
            "" if how == "lora" else "LoRA: see `zoedge schema --field space`",
            how,
        )
        rank = s.carry("lora_rank", "space.rank")
        rank = rank if isinstance(rank, int) else 8
        if s.carry("lora_alpha", "space.alpha") is None:
            s.put("lora_alpha", "space.alpha", 2 * rank, given="twice lora_rank")
        if (names := s.take("lora_target")) is not None:
            s.targets("lora_target", names)
    if (length := s.carry("cutoff_len", "data.max_length")) is not None:
        s.put("cutoff_len", "data.on_overflow", "truncate", CUT, length)
    s.carry("max_samples", "data.limit", note="of all rows together, drawn by their content; there, of each data set")
    s.holdout("val_size")
    s.steps("max_steps", "num_train_epochs", s.batch("per_device_train_batch_size", "gradient_accumulation_steps"))
    s.carry("seed", "seed")
    s.carry("output_dir", "output.dir", note="runs lie in it, each with its log and its adapter")
    s.carry("run_name", "name")
    if isinstance(s.left.get("eval_steps"), int):
        s.carry("eval_steps", "eval.every")
    s.first_order("learning_rate", "optim")
    s.schedule("lr_scheduler_type")
    s.carry("weight_decay", "rule.weight_decay")
    s.precision()
    for key in ("train_on_prompt", "mask_history"):
        if s.left.get(key) is True:
            s.change(key, s.take(key), f"{WHY[key]}")
    if s.take("load_best_model_at_end") and "valid" in s.out.table["data"]:
        s.put("load_best_model_at_end", "eval.select", "best", given=True)


TOOLS: dict[str, Callable[[Source], None]] = {"mlx-lm": mlx_lm, "axolotl": axolotl, "llama-factory": llama_factory}

"""`zoedge import-config` turns another tool's configuration into a recipe, and reports what became of each of its keys."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ...errors import UsageError, make_printable, suggest_nearest
from ...recipe.strict_yaml import StrictDumper, read_text_file, read_yaml
from .axolotl import convert_axolotl
from .llama_factory import convert_llama_factory
from .mlx_lm import convert_mlx_lm
from .source import ConfigConverter, ImportedRecipe

TOOL_KEYS = {  # keys that only one of the three tools has
    "mlx-lm": (
        "iters",
        "lora_parameters",
        "fine_tune_type",
        "adapter_path",
        "num_layers",
        "lora_layers",
        "steps_per_eval",
        "steps_per_report",
        "grad_checkpoint",
        "mask_prompt",
        "val_batches",
        "test_batches",
        "resume_adapter_file",
        "model",
        "data",
        "train",
        "hf_dataset",
        "save_every",
        "lr_schedule",
    ),
    "axolotl": (
        "base_model",
        "datasets",
        "sequence_len",
        "micro_batch_size",
        "num_epochs",
        "adapter",
        "lora_r",
        "lora_target_linear",
        "val_set_size",
        "sample_packing",
        "dataset_prepared_path",
        "lora_target_modules",
        "load_in_4bit",
        "load_in_8bit",
        "flash_attention",
        "tokenizer_type",
        "model_type",
        "saves_per_epoch",
        "evals_per_epoch",
        "lr_scheduler",
    ),
    "llama-factory": (
        "model_name_or_path",
        "stage",
        "finetuning_type",
        "template",
        "cutoff_len",
        "dataset",
        "dataset_dir",
        "lora_rank",
        "lora_target",
        "val_size",
        "do_train",
        "max_samples",
        "per_device_train_batch_size",
        "num_train_epochs",
        "overwrite_cache",
        "preprocessing_num_workers",
        "plot_loss",
        "quantization_bit",
    ),
}


def read_config(path: Path) -> dict[str, Any]:
    """Return the table of a configuration file, YAML or JSON. UsageError: the file does not hold one."""
    text = read_text_file(path)
    if path.suffix.lower() == ".json":
        try:
            table = json.loads(text)
        except (ValueError, RecursionError) as e:
            raise UsageError(f"{path}: not valid JSON: {make_printable(str(e))}.") from None
    else:
        table, _ = read_yaml(text, str(path))
    if not isinstance(table, dict) or not table:
        raise UsageError(f"{path}: not a configuration: a table of keys and values.")
    return table


def recognise_tool(table: dict[str, Any], where: str) -> str:
    """Return the tool whose keys these are. UsageError: they are no tool's, or fit two tools equally well."""
    counts = {tool: sum(key in table for key in keys) for tool, keys in TOOL_KEYS.items()}
    best, second = sorted(counts.values(), reverse=True)[:2]
    if "version" in table and isinstance(table.get("model"), dict):
        raise UsageError(f"{where}: this is a recipe of zoedge's already: zoedge finetune {where}")
    if best < 2 or best == second:
        raise UsageError(
            f"{where}: cannot tell which tool's this is (keys: {make_printable(', '.join(map(str, table)))}). Name it: --from "
            f"{' | '.join(TOOL_KEYS)}."
        )
    return max(counts, key=counts.__getitem__)


def convert_config(table: dict[str, Any], tool: str, where: str) -> ImportedRecipe:
    """Return the recipe that a tool's configuration comes to. UsageError: it names no base model or no rows."""
    if tool not in CONVERTERS:
        raise UsageError(
            f"--from: '{make_printable(tool)}' is not {', '.join(CONVERTERS)}{suggest_nearest(tool, CONVERTERS) or '.'}"
        )
    source = ConfigConverter(table, where, tool)
    CONVERTERS[tool](source)
    source.rest()
    return source.out


def dump_imported(imported: ImportedRecipe, where: str) -> str:
    """Return the recipe as YAML. Keys that it does not set have zoedge's defaults."""
    import yaml

    name = make_printable(Path(where).name)
    head = f"# From {imported.tool}'s {name} by `zoedge import-config`; `zoedge schema` has every key.\n"
    text = yaml.dump(
        imported.table, Dumper=StrictDumper, sort_keys=False, allow_unicode=True, width=120, default_flow_style=None
    )
    return head + text


CONVERTERS: dict[str, Callable[[ConfigConverter], None]] = {
    "mlx-lm": convert_mlx_lm,
    "axolotl": convert_axolotl,
    "llama-factory": convert_llama_factory,
}

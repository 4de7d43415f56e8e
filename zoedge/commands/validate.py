"""Everything about a run that can be wrong and be told without its weights: the recipe, the rows, the model, the exports."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ..errors import DataError, UsageError, ZoedgeError, make_printable
from ..recipe.reading import read_recipe
from ..recipe.recipe import Recipe, part_name


def validate_recipe(name: str, overrides: list[str] | None = None) -> str:
    """What a recipe comes to, in a line. UsageError or DataError lists all that is wrong with it."""
    recipe = read_recipe(name, overrides)
    faults: list[ZoedgeError] = []
    found: list[str] = []
    tokenizer, limit = None, recipe.data.max_length
    from ..scoring.models.loading import load_tokenizer

    try:
        folder, config = read_model_config(recipe)
        if folder is None:
            found.append(f"{recipe.model.source} (not fetched yet)")
        else:
            base = meta_model(recipe, folder)
            found.append(f"{config.get('model_type')}, {len(base.blocks)} layers, {recipe.model.quantization}")
            limit = min(limit, base.context_length)
            tokenizer = load_tokenizer(folder)
    except ZoedgeError as e:
        faults.append(e)
    found += count_rows(recipe, tokenizer, limit, faults)
    found.append(f"{part_name(recipe.space)}, {recipe.train.steps:,} steps of {recipe.train.batch}")
    found.append(f"then {' and '.join(recipe.output.export)}" if recipe.output.export else "no export")
    if faults:
        kind = UsageError if all(isinstance(e, UsageError) for e in faults) else DataError
        raise kind("\n".join(dict.fromkeys(map(str, faults))))
    return "; ".join(found)


def read_model_config(recipe: Recipe) -> tuple[Path | None, dict[str, Any]]:
    """(the model's folder, its config.json); None: a packaged model or a hub's that has not been fetched: nothing is, here."""
    from ..scoring.models.checkpoint import check_files
    from ..scoring.models.loading import resolve_device
    from ..scoring.sources.cache import cache_folder
    from ..scoring.sources.catalog import PACKAGED_MODELS
    from ..scoring.sources.hub import HUB_ID_PATTERN
    from ..scoring.sources.resolve import resolve_model

    resolve_device(recipe.model)
    source = recipe.model.source
    if source in PACKAGED_MODELS:
        if not (folder := cache_folder("models") / source).is_dir():
            return None, {}
    elif HUB_ID_PATTERN.fullmatch(source) and not Path(source).expanduser().exists():
        if (there := find_cached_model(source, recipe.model.revision)) is None:
            return None, {}
        folder = there
    else:
        folder = resolve_model(source)
    check_files(folder)
    config = json.loads((folder / "config.json").read_bytes())
    if config.get("quantization_config") and recipe.model.quantization != "none":
        raise DataError(
            f"model.source: {folder} is quantised already. Name the 16-bit model, or set quantization: none."
        )
    return folder, config


def find_cached_model(source: str, revision: str | None) -> Path | None:
    """A hub's model as an earlier run has fetched it."""
    import huggingface_hub

    try:
        return Path(huggingface_hub.snapshot_download(source, revision=revision, local_files_only=True))
    except Exception:
        return None


def meta_model(recipe: Recipe, folder: Path) -> Any:
    """The base without storage. DataError: what the recipe asks of it that it has not."""
    import torch
    from transformers import AutoConfig

    from ..scoring.models.base import Base
    from ..scoring.models.checkpoint import translate_errors
    from ..scoring.models.families import check_head
    from ..scoring.models.loading import auto_class

    with translate_errors(folder), torch.device("meta"):
        made, facts = auto_class(folder)
        check_head(part_name(recipe.task), recipe.task.head, facts)
        config = AutoConfig.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
        base = Base(made.from_config(config), None, facts, torch.float32, torch.device("meta"), b"", folder)
    base.quantization = recipe.model.quantization
    recipe.space.describe(base)
    return base


def count_rows(recipe: Recipe, tokenizer: Any, limit: int, faults: list[ZoedgeError]) -> list[str]:
    """How many rows there are of each set; what is wrong with them is added to `faults`."""
    from ..scoring.rows.fields import without_rows
    from ..scoring.rows.sets import load_rows
    from ..scoring.sources.cache import cache_folder
    from ..scoring.sources.catalog import PACKAGED_TEXTS
    from ..scoring.sources.hub import HUB_ID_PATTERN
    from ..scoring.sources.resolve import find_split_file

    data, found = recipe.data, []
    whole = True  # nothing hides what the sets themselves would say
    sources = {"train": data.train}
    for which in ("valid", "test"):
        place = getattr(data, which)
        if place is None:
            try:
                place = find_split_file(data.train, which)
            except DataError as e:
                faults.append(e)
        if isinstance(place, str):
            sources[which] = place
    for which, source in sources.items():
        if (source in PACKAGED_TEXTS and not (cache_folder("texts") / f"{source}.jsonl").exists()) or (
            HUB_ID_PATTERN.fullmatch(source.partition(":")[0])
            and not Path(source.partition(":")[0]).expanduser().exists()
            and not Path(source).suffix[1:].isalpha()
        ):
            found.append(f"{which} {make_printable(source)} (not fetched yet)")
            whole = False
            continue
        try:
            without_rows(load_rows(source, f"data.{which}", data)[0], data.without)
        except ZoedgeError as e:
            faults.append(e)
            whole = False
    if not whole:
        return found
    from ..scoring.rows.sets import load_sets
    from ..scoring.texts import load_datasets

    try:
        if tokenizer is None:
            main, parts, _ = load_sets(data, recipe.task.fields())
            sizes = {"train": len(main), **{k: len(v) for k, v in parts.items()}}
        else:
            made = load_datasets(recipe.data, recipe.task, recipe.seed, tokenizer, limit)
            sizes = {k: len(v) for k in ("train", "valid", "test") if (v := getattr(made, k)) is not None}
    except ZoedgeError as e:
        faults.append(e)
        return found
    return [*found, ", ".join(f"{count:,} {which} rows" for which, count in sizes.items())]

"""`zoedge validate` checks all of a run that can be checked without weights: the recipe, rows, model and exports."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from ..errors import DataError, UsageError, ZoedgeError, make_printable
from ..recipe.reading import read_recipe
from ..recipe.recipe import Recipe, part_name

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from ..core.base import SpaceBase
    from ..scoring.models.base import Base


def validate_recipe(name: str, overrides: list[str] | None = None) -> str:
    """Return a line that says what a recipe comes to. UsageError or DataError: all that is wrong with it, a line each."""
    from ..scoring.models.loading import load_tokenizer

    recipe = read_recipe(name, overrides)
    faults: list[ZoedgeError] = []
    summary: list[str] = []
    tokenizer, limit, vocabulary = None, recipe.data.max_length, 0
    try:
        folder, config = read_model_config(recipe)
        if folder is None:
            summary.append(f"{recipe.model.source} (not fetched yet)")
        else:
            base = meta_model(recipe, folder)
            summary.append(f"{config.get('model_type')}, {len(base.blocks)} layers, {recipe.model.quantization}")
            limit, vocabulary = min(limit, base.context_length), base.model.config.vocab_size
            tokenizer = load_tokenizer(folder)
    except ZoedgeError as e:
        faults.append(e)
    summary += count_rows(recipe, tokenizer, limit, vocabulary, faults)
    summary.append(f"{part_name(recipe.space)}, {recipe.train.steps:,} steps of {recipe.train.batch}")
    summary.append(f"then {' and '.join(recipe.output.export)}" if recipe.output.export else "no export")
    if faults:
        kind = UsageError if all(isinstance(e, UsageError) for e in faults) else DataError
        raise kind("\n".join(dict.fromkeys(map(str, faults))))
    return "; ".join(summary)


def read_model_config(recipe: Recipe) -> tuple[Path | None, dict[str, Any]]:
    """Return (the model's folder, its config.json); (None, {}): the model is packaged or a hub's, and not downloaded yet.

    Nothing is downloaded here. DataError: there is no such model, or it is quantised already.
    """
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
        if (snapshot := find_cached_model(source, recipe.model.revision)) is None:
            return None, {}
        folder = snapshot
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
    """Return the folder of a hub's model that an earlier run has downloaded; None: there is none."""
    import huggingface_hub

    try:
        return Path(huggingface_hub.snapshot_download(source, revision=revision, local_files_only=True))
    except Exception:
        return None


def meta_model(recipe: Recipe, folder: Path) -> Base:
    """Return the base without data, with the recipe's space described over it.

    DataError: the recipe asks for layers, modules or a head that the base does not have.
    """
    import torch
    from transformers import AutoConfig

    from ..scoring.models.base import Base
    from ..scoring.models.checkpoint import translate_errors
    from ..scoring.models.families import check_head
    from ..scoring.models.loading import auto_class

    with translate_errors(folder), torch.device("meta"):
        model_class, facts = auto_class(folder)
        check_head(part_name(recipe.task), recipe.task.head, facts)
        config = AutoConfig.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
        no_tokenizer: Any = None  # only shapes are asked
        base = Base(
            model_class.from_config(config), no_tokenizer, facts, torch.float32, torch.device("meta"), b"", folder
        )
    base.quantization = recipe.model.quantization
    # mypy takes the function in `Base.project` for a method, which cannot be set
    recipe.space.describe(cast("SpaceBase", base))
    return base


def count_rows(
    recipe: Recipe, tokenizer: PreTrainedTokenizerBase | None, limit: int, vocabulary: int, faults: list[ZoedgeError]
) -> list[str]:
    """Return how many rows each set has and what is to be known of them, or that it is not downloaded yet.

    What is wrong with them is added to `faults`.

    vocabulary: how many tokens the model's table has; it is read only if there is a tokenizer.
    """
    from ..scoring.rows.fields import without_rows
    from ..scoring.rows.sets import load_rows, load_sets
    from ..scoring.texts import load_datasets, readable_fields

    data = recipe.data
    missing: list[str] = []
    is_readable = True  # every set by itself: only then do the sets together say more
    for which, source in find_row_sources(recipe, faults).items():
        if is_unfetched(source):
            missing.append(f"{which} {make_printable(source)} (not fetched yet)")
            is_readable = False
            continue
        try:
            without_rows(load_rows(source, f"data.{which}", data)[0], data.without)
        except ZoedgeError as e:
            faults.append(e)
            is_readable = False
    if not is_readable:
        return missing
    try:
        if tokenizer is None:
            task = recipe.task
            main, parts, _ = load_sets(data, task.fields(), task.content, readable_fields(task))
            sizes = {"train": len(main), **{which: len(rows) for which, rows in parts.items()}}
        else:
            sets = load_datasets(data, recipe.task, recipe.seed, tokenizer, limit, vocabulary)
            pairs = (("train", sets.train), ("valid", sets.valid), ("test", sets.test))
            sizes = {which: len(examples) for which, examples in pairs if examples is not None}
            missing += [
                f"{n:,} {which} rows {what}" for which, counts in sets.counts.items() for what, n in counts.items() if n
            ]
    except ZoedgeError as e:
        faults.append(e)
        return missing
    return [", ".join(f"{count:,} {which} rows" for which, count in sizes.items()), *missing]


def find_row_sources(recipe: Recipe, faults: list[ZoedgeError]) -> dict[str, str]:
    """Return where the rows of each set come from; what is wrong with that is added to `faults`."""
    from ..scoring.sources.resolve import find_split_file

    data = recipe.data
    sources = {"train": data.train}
    for which, value in (("valid", data.valid), ("test", data.test)):
        try:
            source = find_split_file(data.train, which) if value is None else value
        except DataError as e:
            faults.append(e)
            continue
        if isinstance(source, str):  # not a share of the training rows
            sources[which] = source
    return sources


def is_unfetched(source: str) -> bool:
    """Return whether these rows are packaged or a hub's, and have not been downloaded yet."""
    from ..scoring.sources.cache import cache_folder
    from ..scoring.sources.catalog import PACKAGED_TEXTS
    from ..scoring.sources.hub import HUB_ID_PATTERN

    if source in PACKAGED_TEXTS and not (cache_folder("texts") / f"{source}.jsonl").exists():
        return True
    name = source.partition(":")[0]
    is_hub_id = HUB_ID_PATTERN.fullmatch(name) is not None
    return is_hub_id and not Path(name).expanduser().exists() and not Path(source).suffix[1:].isalpha()

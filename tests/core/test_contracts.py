"""Every attribute that is read of a part is declared by its base class in core/types.py, with a default where there is one.

So nobody asks whether a part has an attribute: `getattr` and `hasattr` with a name in quotes are for foreign objects alone.
"""

from __future__ import annotations

import ast
import inspect
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

import zoedge
from zoedge.core import types
from zoedge.core.parts import PART_FOLDERS, list_words, load_part
from zoedge.core.types import Space

ROOT = Path(zoedge.__file__).parent
CONTRACTS = {
    "noise": types.AbstractNoise,
    "estimator": types.AbstractEstimator,
    "rule": types.AbstractRule,
    "space": types.AbstractSpace,
    "task": types.AbstractTask,
}
PARTS = [(kind, word) for kind, folder in PART_FOLDERS.items() for word in list_words(folder)]
# what other files ask of one class alone, which they name
OWN = {"classify": {"render", "render_rows"}, "chat": {"beginning", "render_question", "render_rows", "source"}}
# (file, attribute) -> whose it is, and why it may be missing
FOREIGN = {
    ("commands/estimate/facts.py", "dtype"): "a model's config.json may lack it",
    ("commands/estimate/facts.py", "rope_parameters"): "only models with rotary positions have it",
    ("core/digests.py", "cpu"): "torch has it, numpy does not",
    ("core/exact.py", "double"): "as above",
    ("core/exact.py", "sign"): "as above",
    ("core/types.py", "float"): "as above",
    ("commands/estimate/facts.py", "a name that is computed"): "transformers loads its classes when they are asked for",
    ("scoring/models/loading.py", "a name that is computed"): "as above",
    (
        "scoring/models/families/llama.py",
        "a name that is computed",
    ): "transformers' attention, whose q and k may have a norm",
    ("scoring/models/quantised.py", "a name that is computed"): "the scales of bitsandbytes' modules",
    ("scoring/tasks/chat.py", "a name that is computed"): "the special tokens of a tokenizer",
    ("scoring/tasks/_reward_file.py", "a name that is computed"): "a function in a module of the user's",
    ("scoring/tasks/_reward_file.py", "__file__"): "a module that is built in has none",
    ("core/storage.py", "F_FULLFSYNC"): "macOS alone has it",
    ("methods/spaces/full.py", "factor"): "loading puts it on the embedding of Gemma alone",
    ("recipe/strict_yaml.py", "anchor"): "some of yaml's events have it",
    ("recipe/strict_yaml.py", "tag"): "as above",
    ("scoring/models/base.py", "head_dim"): "a model's config.json may lack it",
    ("scoring/models/base.py", "num_key_value_heads"): "as above",
    ("scoring/models/families/__init__.py", "use_bidirectional_attention"): "as above",
    ("scoring/models/families/_rows.py", "layer_types"): "as above",
    ("scoring/models/families/_rows.py", "sliding_window"): "as above",
    ("scoring/models/loading.py", "quantization_config"): "as above",
    ("scoring/models/loading.py", "scalar_embed_scale"): "only Gemma's embedding has it",
    ("scoring/models/quantised.py", "quant_state"): "bitsandbytes' 4-bit weights have it, 8-bit ones do not",
    ("scoring/sources/packaged.py", "quantization_config"): "a model's config.json may lack it",
}


def questions(path: Path) -> set[str]:
    """The constant names that a file asks for with getattr or hasattr."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ("getattr", "hasattr"):
            name = node.args[1]
            found.add(str(name.value) if isinstance(name, ast.Constant) else "a name that is computed")
    return found


def test_only_foreign_objects_are_asked_what_they_have() -> None:
    asked = {(str(path.relative_to(ROOT)), name) for path in ROOT.rglob("*.py") for name in questions(path)}
    assert asked - FOREIGN.keys() == set(), "declare it in core/types.py, or say here whose it is"
    assert FOREIGN.keys() - asked == set(), "nobody asks for it any more"


def public(made: type[Any]) -> set[str]:
    return {name for name in dir(made) if not name.startswith("_")} | {f.name for f in fields(made)}


@pytest.mark.parametrize("kind,word", PARTS)
def test_a_part_has_only_what_its_contract_declares(kind: str, word: str) -> None:
    made, contract = load_part(kind, word), CONTRACTS[kind]
    assert contract in made.__mro__
    declared = public(contract) | set(contract.__annotations__)
    assert public(made) - {f.name for f in fields(made)} - declared == OWN.get(word, set())
    options = {f.name for f in fields(made)} - {f.name for f in fields(contract)}
    assert not options & set(contract.__annotations__), "a trait is no option: the digest would have it"
    for name, text in contract.__annotations__.items():
        assert str(text).startswith("ClassVar") or name in {f.name for f in fields(contract)}
        assert hasattr(made, name), f"{kind} {word} has no {name}"


@pytest.mark.parametrize("word", list_words(PART_FOLDERS["space"]))
def test_an_attached_space_has_only_what_spaces_declare_and_its_own_tensors(word: str) -> None:
    module = inspect.getmodule(load_part("space", word))
    [made] = [
        c
        for n, c in vars(module).items()
        if inspect.isclass(c) and issubclass(c, Space) and c.__module__ == module.__name__
    ]
    declared = public_names(Space)
    extra = public_names(made) - declared
    assert extra <= {"begin", "held_matrix", "hook", "points", "start"}, "what `attach` uses of its own space"


def public_names(made: type[Any]) -> set[str]:
    return {name for name in dir(made) if not name.startswith("_")}


def test_the_options_of_a_part_that_measures_name_its_radius() -> None:
    for word in list_words(PART_FOLDERS["estimator"]):
        made = load_part("estimator", word)
        names = {f.name for f in fields(made)}
        assert made.radius_option in names or (made.radius_option == "" and not names & {"eps", "rho"}), word
        assert set(made.auto) <= names
        assert ("queries" in names) or made().queries == 1

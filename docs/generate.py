"""`make docs`: methods.md from recipes, source files and benchmarks/methods.json; lab.md from docs/lab/*.json; cli.md from
`--help`; and zoedge/recipe/keys.json, which the tab key completes from, from the classes."""

from __future__ import annotations

import inspect
import json
import statistics
from collections.abc import Collection, Iterator
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

import numpy as np
from typer.main import get_command

from zoedge.cli import app
from zoedge.commands.lab import list_experiments
from zoedge.core.oracle import count_evaluations
from zoedge.core.parts import PART_FOLDERS, list_words, load_module, load_part
from zoedge.core.types import Leaf
from zoedge.recipe.parts import build_section
from zoedge.recipe.reading import read_recipe
from zoedge.recipe.recipe import Recipe, part_name
from zoedge.recipe.schema import KEYS_FILE, format_keys, read_descriptions

ROOT = Path(__file__).parents[1]
MEASURED = ROOT / "benchmarks" / "methods.json"
PASSES = 2400  # of every recipe here
RULE_OPTIONS = {"lr", "schedule", "weight_decay"}  # of every rule, and of nothing else
KINDS = {"estimator": "Estimators", "rule": "Rules", "noise": "Directions", "space": "Spaces"}
INTRO = """# Methods

Made by `make docs` from the recipes, the source files and benchmarks/methods.json; a test holds it up to date. A method
is a recipe: what to measure (`estimator`) along which directions (`noise`), and what to do with it (`rule`). Every part
goes with every other unless it says otherwise, so there are more methods than rows here. z is a direction, f the loss of
the step's batch, theta what is trained, g the weights that are logged.

`zoedge finetune fzoo` (or `mezo`, `as2p`, `adamu`, ...) runs a recipe of this page on the embedded model. Your own
combination is three lines of a recipe:

```yaml
noise: {name: low_rank, rank: 4}                   # LOZO's directions
estimator: {name: fzoo, eps: 3e-3, queries: 8}     # FZOO's normalised estimate
rule: {name: momentum, lr: 3e-5}                   # a pair that no paper has tried
```
"""
COLUMNS = """| recipe | noise, estimator, rule | passes a step | state | accuracy | calibrated | loss |
|---|---|---|---|---|---|---|
"""
LAB = """# The lab

The papers' small experiments, run by zoedge's engine on plain arrays (`zoedge lab run NAME`), and whether their findings
held. Made by `make docs` from the files in docs/lab, which are the command's own output; what is another than in the paper
stands in the experiment's file.
"""


CLI = """# Commands

Made by `make docs` from what `--help` says of every command; a test holds it up to date.

- `init`: writes a commented recipe for your rows, and shows how the model will read them
  ([data.md](data.md#from-rows-to-a-recipe)).
- `validate`, `preview`: check recipe, rows, tokenizer and model without weights; show rows as training sees them, with
  the tokens that are scored.
- `estimate`: predicts memory by part, disk and time without reading a weight ([estimate.md](estimate.md)).
- `finetune`: trains, or continues where the run's log ends. `zoedge finetune RECIPE --from RUN@STEP` begins with
  another run's first steps and goes on with another learning rate, batch, data or estimator.
- `resume`: continues a run that was stopped or killed.
- `sweep`, `runs`: train one recipe with many values (a sweep can be resumed, and ends with a table and a report); list
  every run's state and score.
- `report`: writes one HTML file that opens offline: curves, samples, cost, recipe; of several runs a comparison. It
  needs the extra `report`.
- `replay`: rebuilds the adapter from the log alone. `zoedge replay RUN --at best -o DIR` chooses the step; `export`,
  `eval`, `generate`, `chat` and `verify` have `--at` too.
- `verify`: proves a run on up to four levels: the log, what it was trained on, the replayed states, the adapter
  (`zoedge verify RUN --against RECIPE --replay --adapter DIR`).
- `repair`, `log`: mend a damaged log, or cut it where the damage begins, and keep a copy; look into a log, pack it,
  compare two.
- `export`: writes an adapter for PEFT and vLLM, a merged model for transformers, or llama.cpp's LoRA file (LLaMA and
  Mistral bases): `zoedge export RUN --to peft`, `merged` or `gguf-lora`.
- `pack`, `apply`: put a fine-tune into one file of kilobytes; rebuild the same adapter from it on another machine
  ([share.md](share.md)).
- `eval`, `generate`, `chat`: use the trained model. `zoedge eval RUN --tasks hellaswag` runs lm-eval's tasks
  ([lm-eval.md](lm-eval.md), the extra `eval`); `chat` reads lines from a terminal or a pipe.
- `quantize`: makes the pre-quantised cache of a model ahead of time.
- `recipes`, `import-config`, `schema`: list, print and copy the shipped recipes; convert another tool's configuration,
  and say what became of every key; write the JSON schema for editors.
- `lab`: repeats the papers' small experiments: numbers, a plot, and whether the finding was reproduced (the extra
  `lab`).
- `doctor`: shows versions and memory and tests the arithmetic; `zoedge doctor --fix-hints` prints what to type against
  each problem.

`zoedge --install-completion` completes commands, options and names in your shell. `--debug`, anywhere on the command
line, shows the traceback of a mistake. `pip install -e '.[report,eval,lab]'` installs the three extras.

## Exit codes

| code | meaning |
|---|---|
| 0 | success |
| 2 | a mistake in the command line or the recipe |
| 3 | a problem with the data or the model, or the run does not fit into memory |
| 4 | the log belongs to another recipe, base, tokenizer or data |
| 5 | a damaged log or export |
| 6 | another process is using the run |
| 7 | training diverged |
| 8 | replay arrives at a different state than the log says, a worker computes different bits, or an export is another model |
| 70 | a bug in zoedge |
| 74 | the disk refused a write, or a worker was lost |
| 130, 143 | stopped by Ctrl-C (SIGINT) or SIGTERM |

## Every command and option
"""
WIDTH = 100  # of a help text, whatever the terminal's


def docstring(text: str | None) -> str:
    """As Markdown: paragraphs on one line each, without `*` or `_` that would become emphasis; indented blocks as they are."""
    blocks = inspect.cleandoc(text or "").split("\n\n")
    return "\n\n".join(block if block.startswith("    ") else plain_paragraph(block) for block in blocks)


def plain_paragraph(block: str) -> str:
    return " ".join(block.split()).replace("*", r"\*").replace("|", r"\|")


def state(rule: Any) -> int:
    """Floats that a rule keeps an element."""
    leaf = Leaf("x", 0, np.zeros(4, np.float32), (), 4)  # type: ignore[arg-type]
    return sum(isinstance(value, np.ndarray) for value in rule.slots(leaf, 100).values())


def comments(path: Path) -> tuple[str, str]:
    """(title, what the paper says) of a recipe's first two lines."""
    first, second = path.read_text(encoding="utf-8").splitlines()[:2]
    return first.removeprefix("# "), second.removeprefix("# The paper: ")


def methods() -> dict[str, tuple[Path, Recipe]]:
    """The recipes whose second line says what their paper found."""
    paths = [p for p in sorted((ROOT / "recipes").glob("*.yaml")) if "\n# The paper: " in p.read_text(encoding="utf-8")]
    return {path.stem: (path, read_recipe(str(path))) for path in paths}


def row(name: str, recipe: Recipe, measured: dict[str, Any]) -> str:
    chosen = ", ".join(f"`{part_name(p)}`" for p in (recipe.noise, recipe.estimator, recipe.rule))
    passes, kept = count_evaluations(recipe.estimator, recipe.train.steps)[1], state(recipe.rule)
    found = measured.get(name)
    cells = [spread(found[key]) if found else "" for key in ("accuracy", "calibrated", "loss")]
    return f"| [{name}](#{name}) | {chosen} | {passes} | {kept} | {' | '.join(cells)} |\n"


def spread(values: list[float]) -> str:
    """The median, and from the lowest to the highest."""
    low, middle, high = min(values), statistics.median(values), max(values)
    return f"{middle:.3f} ({low:.3f}-{high:.3f})".replace("0.", ".")


def method(name: str, path: Path, recipe: Recipe) -> str:
    title, paper = comments(path)
    own = ("space",) if part_name(recipe.space) != "lora" else ()
    lines = "".join(
        f"    {key}: {text.partition(': ')[2]}\n"
        for key in (*own, "noise", "estimator", "rule")
        for text in path.read_text(encoding="utf-8").splitlines()
        if text.startswith(f"{key}:")
    )
    return f"### {name}\n\n{title}\n\n{lines}\nThe paper: {paper}\n\n"


def options(made: type[Any], names: Collection[str]) -> str:
    """Some fields of a class as a list: their default, as a recipe would write it, and their text."""
    texts, lines = read_descriptions(build_section(made)), []
    for f in fields(made):
        if f.name in names:
            value = f.default_factory() if f.default_factory is not MISSING else f.default
            default = "auto" if f.name in made.auto else json.dumps(value)
            lines.append(f"- `{f.name}: {default}` - {plain_paragraph(texts[f.name])}\n")
    return "".join(lines)


def description(kind: str, word: str) -> str:
    made, file = load_part(kind, word), load_module(PART_FOLDERS[kind], word)
    title = f"space: {word}" if kind == "space" else word  # a recipe has the name of its space
    text = f"### {title}\n\n{docstring(file.__doc__)}\n\n"
    if own := options(made, {f.name for f in fields(made)} - RULE_OPTIONS):
        text += f"Options:\n\n{own}\n"
    for other, allowed in made.only_with.items():
        text += f"Only with {other}: {', '.join(map(str, allowed))}.\n\n"
    if kind == "rule":
        text += f"State: {state(made())} floats an element.\n\n"
    if kind == "estimator":
        text += f"Forward passes a step with the defaults: {count_evaluations(made(), 100)[1]}.\n\n"
    return text


def about(measured: dict[str, Any]) -> str:
    if not measured:
        return ""
    some = next(iter(measured["methods"].values()))
    return (
        f"Measured on {measured['date']} ({measured['machine']}): each recipe as it is shipped, about {PASSES:,} forward "
        f"passes, SmolLM2-135M in nf4, rank-8 LoRA on the last block, 1,500 film reviews; on 1,000 held-out rows, the median "
        f"of {len(some['accuracy'])} seeds (lowest-highest). Zero-shot is .502, calibrated .664. Step sizes come from two or "
        "three values tried on another seed: differences of a few hundredths are no ranking.\n\n"
    )


def page() -> str:
    measured = json.loads(MEASURED.read_text(encoding="utf-8")) if MEASURED.exists() else {}
    found = methods()
    text = INTRO + "\n## Recipes\n\n" + about(measured) + COLUMNS
    text += "".join(row(name, recipe, measured.get("methods", {})) for name, (_, recipe) in found.items()) + "\n"
    text += "".join(method(name, path, recipe) for name, (path, recipe) in found.items())
    for kind, title in KINDS.items():
        text += f"## {title}\n\n"
        if kind == "rule":
            text += f"Every rule has these options:\n\n{options(load_part(kind, 'sgd'), RULE_OPTIONS)}\n"
        text += "".join(description(kind, word) for word in list_words(PART_FOLDERS[kind]))
    return text.rstrip() + "\n"


def lab() -> str:
    text = LAB
    for name, about in list_experiments():
        file = ROOT / "docs" / "lab" / f"{name}.json"
        if not file.exists():
            continue
        found = json.loads(file.read_text(encoding="utf-8"))
        word = name.replace("-", "_")
        text += f"\n## {name}\n\n{about}\n\n"
        chosen = " ".join(f"{key}={value}" for key, value in found["options"].items())
        text += f"[zoedge/lab/{word}.py](../zoedge/lab/{word}.py), seed {found['seed']}, {chosen}\n\n"
        text += "| the finding | here | |\n|---|---|---|\n"
        for claim in found["claims"]:
            verdict = "reproduced" if claim["holds"] else "**not reproduced**"
            cells = [claim[key].replace("|", "\\|") for key in ("paper", "here")]
            text += f"| {cells[0]} | {cells[1]} | {verdict} |\n"
        text += f"\n![{name}](lab/{name}.svg)\n"
    return text


def commands(command: Any, name: str = "zoedge", parent: Any = None) -> Iterator[tuple[str, str]]:
    """(what to type, its --help) of a command and of those below it."""
    context = command.context_class(command, info_name=name, parent=parent, terminal_width=WIDTH)
    yield context.command_path, "\n".join(line.rstrip() for line in command.get_help(context).splitlines())
    for word, below in getattr(command, "commands", {}).items():
        yield from commands(below, word, context)


def cli() -> str:
    found = list(commands(get_command(app)))
    text = CLI + "\n"
    for path, _ in found[1:]:
        text += f"- [{path}](#{path.replace(' ', '-')})\n"
    for path, about in found:
        text += f"\n## {path}\n\n```\n{about}\n```\n"
    return text


if __name__ == "__main__":
    (ROOT / "docs" / "methods.md").write_text(page(), encoding="utf-8")
    (ROOT / "docs" / "lab.md").write_text(lab(), encoding="utf-8")
    (ROOT / "docs" / "cli.md").write_text(cli(), encoding="utf-8")
    KEYS_FILE.write_text(format_keys(), encoding="utf-8")

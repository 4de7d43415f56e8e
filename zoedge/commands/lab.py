"""`zoedge lab ls | run`: the papers' small experiments."""

from __future__ import annotations

import json
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from .. import lab
from ..core.parts import list_words, load_module
from ..errors import StorageError, UsageError, ZoedgeError, make_printable, suggest_nearest

if TYPE_CHECKING:
    from ..lab._bench import Outcome


class Experiment(Protocol):
    """A frozen dataclass that is named as its file; its fields are the experiment's options."""

    def run(self, seed: int) -> Outcome:
        """Run the experiment and return what came of it."""


def list_experiments() -> list[tuple[str, str]]:
    """Return (name, first line of its file) of every experiment, without importing what they need."""
    folder = Path(lab.__file__).parent
    lines = {word: (folder / f"{word}.py").read_text(encoding="utf-8").partition("\n")[0] for word in list_words("lab")}
    return [(word.replace("_", "-"), line.strip('" ')) for word, line in lines.items()]


def make_experiment(name: str, overrides: list[str]) -> Experiment:
    """Return an experiment with options from key=value texts. UsageError: an unknown name, option or value."""
    from ..recipe.parts import parse_options

    known = [name for name, _ in list_experiments()]
    if name not in known:
        raise UsageError(
            f"lab: no '{make_printable(name)}'. There is: {', '.join(known)}{suggest_nearest(name, known)}"
        )
    word = name.replace("-", "_")
    try:
        module = load_module("lab", word)
    except ImportError as e:
        raise UsageError(f"lab: '{name}' needs {e.name}. Type: pip install 'zoedge[lab]'") from None
    experiment: Experiment = parse_options(vars(module)["".join(w.capitalize() for w in word.split("_"))], overrides)
    return experiment


def run_experiment(name: str, experiment: Any, seed: int, out: Path) -> Outcome:
    """Run an experiment, write OUT/NAME.json and OUT/NAME.svg, and return its Outcome.

    UsageError: a package that it needs is missing. StorageError: `out` cannot be written.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise StorageError(f"{out}: cannot write there: {e.strerror}. Choose another --out.") from e
    began = time.monotonic()
    try:
        outcome: Outcome = experiment.run(seed)
        outcome.draw().savefig(out / f"{name}.svg")
    except ImportError as e:
        raise UsageError(f"lab: '{name}' needs {e.name}. Type: pip install 'zoedge[lab]'") from None
    except OSError as e:
        raise ZoedgeError(f"lab: {e}") from e
    table = {
        "experiment": name,
        "seed": seed,
        "options": asdict(experiment),
        "seconds": round(time.monotonic() - began, 1),
        "claims": [claim._asdict() for claim in outcome.claims],
        "numbers": outcome.numbers,
    }
    (out / f"{name}.json").write_text(json.dumps(table, indent=1) + "\n", encoding="utf-8")
    return outcome

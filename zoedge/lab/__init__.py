"""The papers' small experiments, each a file, run by the same engine on plain arrays: `zoedge lab ls | run NAME`.

An experiment is a frozen dataclass named as its file; its fields are its options; `run(seed)` gives an Outcome.
"""

from __future__ import annotations

import json
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ..core.parts import list_words, load_module
from ..errors import StorageError, UsageError, ZoedgeError, make_printable, suggest_nearest


def list_experiments() -> list[tuple[str, str]]:
    """(name, first line of its file), without importing what they need."""
    here = Path(__file__).parent
    lines = {word: (here / f"{word}.py").read_text(encoding="utf-8").partition("\n")[0] for word in list_words("lab")}
    return [(word.replace("_", "-"), line.strip('" ')) for word, line in lines.items()]


def make_experiment(name: str, overrides: list[str]) -> Any:
    """The experiment of that name with options from key=value texts. UsageError: an unknown name, option or value."""
    from ..recipe.parts import parse_options

    known = [name for name, _ in list_experiments()]
    if name not in known:
        raise UsageError(
            f"lab: no '{make_printable(name)}'. There is: {', '.join(known)}{suggest_nearest(name, known)}"
        )
    word = name.replace("-", "_")
    try:
        found = load_module("lab", word)
    except ImportError as e:
        raise UsageError(f"lab: '{name}' needs {e.name}. Type: pip install 'zoedge[lab]'") from None
    return parse_options(getattr(found, "".join(w.capitalize() for w in word.split("_"))), overrides)


def run_experiment(name: str, made: Any, seed: int, out: Path) -> Any:
    """Runs an experiment, writes OUT/NAME.json and OUT/NAME.svg, and returns its Outcome."""
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise StorageError(f"{out}: cannot write there: {e.strerror}. Choose another --out.") from e
    began = time.monotonic()
    try:
        outcome = made.run(seed)
        outcome.draw().savefig(out / f"{name}.svg")
    except ImportError as e:
        raise UsageError(f"lab: '{name}' needs {e.name}. Type: pip install 'zoedge[lab]'") from None
    except OSError as e:
        raise ZoedgeError(f"lab: {e}") from e
    found = {
        "experiment": name,
        "seed": seed,
        "options": asdict(made),
        "seconds": round(time.monotonic() - began, 1),
        "claims": [claim._asdict() for claim in outcome.claims],
        "numbers": outcome.numbers,
    }
    (out / f"{name}.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    return outcome

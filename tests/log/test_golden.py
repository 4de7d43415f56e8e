"""Old logs replay for ever: golden logs of every noise, estimator, rule and space, written once (tests/golden/make.py).

A file of tests/golden is NEVER made again. If one does not replay, a promise to users is broken: mend the code.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from golden import make

from zoedge.commands import verify
from zoedge.core import digests, parts
from zoedge.log import packed
from zoedge.log.log import Log
from zoedge.recipe.recipe import part_name
from zoedge.run import identity

GOLDEN = sorted(make.HERE.glob("*.zlog"))
EXPECTED = json.loads(make.EXPECTED.read_text())


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(make.base(tmp_path_factory.mktemp("golden") / "tiny"))


def test_every_part_has_a_golden_log() -> None:
    assert {path.stem for path in GOLDEN} == set(EXPECTED) and len(GOLDEN) >= 12
    recipes = [identity.recipe_from_header(Log.open(path).header, path.name) for path in GOLDEN]
    for kind in ("noise", "estimator", "rule", "space"):
        assert {part_name(getattr(recipe, kind)) for recipe in recipes} == set(
            parts.list_words(parts.PART_FOLDERS[kind])
        )
    for path in GOLDEN:
        assert b"/" not in Log.open(path).header.block, "no path of the machine that made it"
    assert sum(path.stat().st_size for path in GOLDEN) < 64 << 10


@pytest.mark.parametrize("path", GOLDEN, ids=lambda path: path.stem)
def test_a_golden_log_replays_to_its_bits(path: Path, tiny: str, tmp_path: Path) -> None:
    """From the log, from its packed form, and by the second implementation."""
    expected, log = EXPECTED[path.stem], Log.open(path)
    assert expected == {"steps": len(log), "slots": log.seq, "fingerprint": log.fingerprint, "state": expected["state"]}
    run, said = verify.check_states(log, base=tiny)
    assert digests.digest(run.space).hex() == expected["state"] and "state hashes agree" in said[0]
    assert verify.find_difference(log, base=tiny) == "torch and numpy agree here at every step."
    (tmp_path / "log.zpack").write_bytes(packed.pack_log(log))
    run, _ = verify.check_states(packed.PackedLog.open(tmp_path / "log.zpack"), base=tiny)
    assert digests.digest(run.space).hex() == expected["state"]

"""Any bytes as a recipe's YAML with an override, or as the block of a log's header, whose recipe is then checked."""

from __future__ import annotations

import atheris
from common import FOLDER, fuzz

with atheris.instrument_imports(include=["zoedge.recipe.check", "zoedge.log.log", "zoedge.run.setup", "zoedge.errors"]):
    from zoedge.log import log
    from zoedge.recipe import check
    from zoedge.run import setup

PATH = FOLDER / "my.yaml"
DIGESTS = {name: bytes(32) for name in log.DIGESTS}


def target(data: bytes) -> None:
    if data[:1] == b"h":
        head = log.Header(data[1:], 2, 1, 1, 1, 9, 2, 3, **DIGESTS)
        table = setup.recipe_of(log.Header.decode(head.encode(), "log")[0], "log")
    else:
        text, _, override = data.partition(b"\0")
        PATH.write_bytes(text)
        table = check.read(str(PATH), [override.decode("utf-8", "replace")] if override else [])
    PATH.write_text(check.dump(table), encoding="utf-8")
    assert check.read(str(PATH)) == table, "what is written is not read back"


if __name__ == "__main__":
    base = b"version: 1\nmodel: {source: s}\ndata: {train: r.jsonl}\n"
    PATH.write_bytes(base)
    block = log.canonical({"recipe": check.read(str(PATH)).resolved()})
    shipped = [path.read_bytes() for path in check.shipped()[:12]]
    fuzz(target, [base, base + b"\0rule.lr=1e-3", b"h" + block, *shipped])

"""Any bytes as a recipe's YAML with an override, or as the block of a log's header, whose recipe is then checked."""

from __future__ import annotations

import atheris
from common import FOLDER, fuzz

with atheris.instrument_imports(include=["zoedge.recipe.check", "zoedge.log.log", "zoedge.run.setup", "zoedge.errors"]):
    from zoedge.core import canonical
    from zoedge.log import header
    from zoedge.recipe import reading, recipe
    from zoedge.run import identity

PATH = FOLDER / "my.yaml"
DIGESTS = {name: bytes(32) for name in header.DIGEST_FIELDS}


def target(data: bytes) -> None:
    if data[:1] == b"h":
        head = header.Header(data[1:], 2, 1, 1, 1, 9, 2, 3, **DIGESTS)
        table = identity.recipe_from_header(header.Header.decode(head.encode(), "log")[0], "log")
    else:
        text, _, override = data.partition(b"\0")
        PATH.write_bytes(text)
        table = reading.read_recipe(str(PATH), [override.decode("utf-8", "replace")] if override else [])
    PATH.write_text(recipe.dump_recipe(table), encoding="utf-8")
    assert reading.read_recipe(str(PATH)) == table, "what is written is not read back"


if __name__ == "__main__":
    base = b"version: 1\nmodel: {source: s}\ndata: {train: r.jsonl}\n"
    PATH.write_bytes(base)
    block = canonical.encode_canonical({"recipe": reading.read_recipe(str(PATH)).resolved()})
    shipped = [path.read_bytes() for path in reading.list_shipped()[:12]]
    fuzz(target, [base, base + b"\0rule.lr=1e-3", b"h" + block, *shipped])

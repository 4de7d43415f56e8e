"""This module fetches the files of a hub repository, which huggingface_hub then keeps in its cache."""

from __future__ import annotations

import os
import re
from pathlib import Path

from ...errors import DataError, make_printable
from .catalog import PACKAGED_MODELS, PACKAGED_TEXTS

HUB_ID_PATTERN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*/[A-Za-z0-9][A-Za-z0-9._-]*")


def download_snapshot(kind: str, name: str, revision: str | None, patterns: list[str]) -> Path:
    """Return the folder with a snapshot of a hub repository. Nothing else in zoedge asks a hub.

    huggingface_hub 2 reads constants.HF_HUB_OFFLINE at every request, so that it can be changed for one call.

    Args:
        kind: model or dataset.
        name: ORG/NAME.
        revision: a branch, tag or commit; None: the main branch.
        patterns: which files to fetch.

    Raises:
        DataError: the repository cannot be fetched. The message says why, and what else may be named.
    """
    import huggingface_hub
    from huggingface_hub import constants, errors

    if kind == "model":
        what = f"The model '{name}'"
        way_out = f"Give a local folder, or a packaged model ({', '.join(PACKAGED_MODELS)})."
    else:
        what = f"The data set '{name}'"
        way_out = f"Give a local file, or a packaged text ({', '.join(PACKAGED_TEXTS)})."
    offline = os.environ["ZOEDGE_OFFLINE"].lower() not in ("", "0", "false", "no", "off")
    before, constants.HF_HUB_OFFLINE = constants.HF_HUB_OFFLINE, offline
    try:
        folder = huggingface_hub.snapshot_download(name, repo_type=kind, revision=revision, allow_patterns=patterns)
        return Path(folder)
    except errors.GatedRepoError as e:
        why = "gated: accept the licence on its page, then `hf auth login`. Offline?"
        raise DataError(f"{what} is {why} {way_out}") from e
    except errors.RepositoryNotFoundError as e:
        why = (
            "not on the hub (or private: `hf auth login`), and there is no local file or packaged source of this name."
        )
        raise DataError(f"{what} is {why} {way_out}") from e
    except errors.RevisionNotFoundError as e:
        raise DataError(f"{what} has no revision '{make_printable(str(revision))}'. Mend model.revision.") from e
    except Exception as e:
        why = "offline, and not in the hub's cache" if offline else f"can no hub be reached? {type(e).__name__}"
        raise DataError(f"{what} cannot be fetched ({why}). {way_out}") from e
    finally:
        constants.HF_HUB_OFFLINE = before

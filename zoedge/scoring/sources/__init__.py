"""From what a user names (a path, a packaged file, a hub id) to files on this machine.

Importing this package takes huggingface_hub offline: it must come before transformers and bitsandbytes, which would ask the
hub while they are imported. Only `hub.hub` lifts that, for one call.
"""

import os

# What the user wished for before we changed the variable below; child processes find it in ZOEDGE_OFFLINE.
WISH = os.environ.get("HF_HUB_OFFLINE") or os.environ.get("TRANSFORMERS_OFFLINE") or "0"
os.environ.setdefault("ZOEDGE_OFFLINE", WISH)
os.environ["HF_HUB_OFFLINE"] = "1"

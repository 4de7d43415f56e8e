"""This package finds or fetches the files that a user names by a path, the name of a packaged file, or a hub id.

Importing this package takes huggingface_hub offline. It must come before transformers and bitsandbytes, which would ask the
hub while they are imported. Only `hub.download_snapshot` goes online, for one call.
"""

import os

# What the user had set before HF_HUB_OFFLINE is changed below. Child processes read it from ZOEDGE_OFFLINE.
WISH = os.environ.get("HF_HUB_OFFLINE") or os.environ.get("TRANSFORMERS_OFFLINE") or "0"
os.environ.setdefault("ZOEDGE_OFFLINE", WISH)
os.environ["HF_HUB_OFFLINE"] = "1"

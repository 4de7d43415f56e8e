"""Bases. `sources` comes first: it takes huggingface_hub offline before anything here imports bitsandbytes, which would
fetch and run native code at import where the optional package `kernels` is installed.
"""

from .. import sources as sources

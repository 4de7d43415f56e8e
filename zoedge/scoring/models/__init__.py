"""Base models: their files, loading, quantisation, and the forward that scores.

`sources` is imported first. It takes huggingface_hub offline before anything here imports bitsandbytes, which would fetch
and run native code while it is imported where the optional package `kernels` is installed.
"""

from .. import sources as sources

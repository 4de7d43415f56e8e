"""zoedge: fine-tune large language models where memory ends, with forward passes only."""

__version__ = "0.1.0"

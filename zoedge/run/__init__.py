"""One run: its folder, its identity, its set-up, the training loop with looks and signals, and its replay.

A module here may import `core`, `log`, `methods`, `recipe` and `scoring`; only `display.py` prints.
"""

"""The papers' small experiments, each a file, run by zoedge's engine on plain arrays (commands/lab.py runs one).

An experiment is a frozen dataclass that is named as its file; its fields are its options, and `run(seed)` returns an
Outcome.
"""

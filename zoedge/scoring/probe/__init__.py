"""This package computes a closed-form start: a classifier on what one forward pass shows, written as a term of low rank.

`features.py` takes from one pass over labelled rows what the last block writes with and what the options' logits are;
`fit.py` has the regression on these numbers, which needs no model. `answers.py` does both for answers over the whole
vocabulary, with `tail.py`, the part of the network after the last block.
"""

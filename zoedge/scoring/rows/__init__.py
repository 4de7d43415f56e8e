"""This package reads files into rows, and makes the training, validation and test sets of a recipe from them."""

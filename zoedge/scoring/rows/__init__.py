"""From files to rows, and from rows to the training, validation and test sets of a recipe."""

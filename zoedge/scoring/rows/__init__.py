"""Reading files into rows, and making the training, validation and test sets of a recipe of them."""

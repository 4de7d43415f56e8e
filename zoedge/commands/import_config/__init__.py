"""`zoedge import-config`: another tool's configuration as a recipe, and what became of each of its keys."""

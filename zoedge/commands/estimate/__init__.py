"""`zoedge estimate`: the memory, disk and time that a recipe will need, without reading a weight."""

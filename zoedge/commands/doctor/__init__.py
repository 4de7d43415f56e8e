"""`zoedge doctor`: the versions, the memory and the arithmetic of this machine, and what to type against what is in the way."""

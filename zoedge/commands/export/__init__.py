"""`zoedge export`: the trained weights as a folder for PEFT, transformers or llama.cpp."""

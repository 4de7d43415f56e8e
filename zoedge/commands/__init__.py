"""The work of the commands, one command a file or folder. It returns values and prints nothing.

A module here may import every room but `cli`; it never imports typer and never writes to the standard output.
"""

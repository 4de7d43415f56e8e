"""This package reads what the user wrote: strict YAML goes in, and a checked `Recipe` comes out.

A module here may import `zoedge.core` and `zoedge.errors`; it finds methods and tasks by their word only.
"""

"""What the user wrote: strict YAML in, a checked `Recipe` out.

A module here may import `zoedge.core` and `zoedge.errors`; it finds methods and tasks by their word only.
"""

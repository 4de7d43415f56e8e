"""The methods of the literature, one method a file: everything here needs only the log, never the model.

A recipe's word is a file's name: `noise: normal` is `noise/normal.py`. A module here may import `zoedge.core`, `zoedge.errors`
and its own private siblings.
"""

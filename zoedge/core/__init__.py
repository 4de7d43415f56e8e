"""The waist of the package: the words, exact numbers, and the one loop that changes theta.

A module here may import `zoedge.errors` and nothing else of ours.
"""

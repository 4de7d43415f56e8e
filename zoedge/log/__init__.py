"""The log, the only checkpoint of a run: its file format (.zlog), its packed form (.zpack), its shared form (.zoe), and repair.

A module here may import `zoedge.core` and `zoedge.errors`.
"""

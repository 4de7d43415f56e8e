"""What needs the model: rows, tasks, and the forward pass that turns points into losses.

A module here knows nothing of zeroth-order optimisation: it never imports `zoedge.methods`, `zoedge.log` or `zoedge.run`.
"""

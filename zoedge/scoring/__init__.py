"""Everything that needs the model: reading rows, tokenising them for a task, and the forward that makes losses of batches.

No module here knows of zeroth-order optimisation, or imports `zoedge.methods`, `zoedge.log` or `zoedge.run`.
"""

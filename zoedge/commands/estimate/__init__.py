"""`zoedge estimate` predicts a run's memory by part, its disk space and its time; it reads no weights."""

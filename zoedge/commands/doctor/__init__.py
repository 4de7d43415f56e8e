"""`zoedge doctor` shows the versions, memory and arithmetic of this machine, and the commands that mend what hinders a run."""

"""Training: one step, the loop around it, what is on, and the run folder."""

"""Measurements: what the compiler makes of the kernels, and what the kernels do on a GPU."""

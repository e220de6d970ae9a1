"""Measurements: what the compiler makes of the kernels, what kernels and training steps do on a device, and accuracy.

Commands lie in the rooms below and are called without the room's name: `python -m bench.throughput` is
bench/training/throughput.py. bench/README.md lists them.
"""

from pathlib import Path

__path__ += [str(Path(__file__).parent / room) for room in ("kernels", "training")]

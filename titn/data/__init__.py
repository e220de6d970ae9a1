"""Data sets: uint8 arrays with class names and statistics, from wherever they lie."""

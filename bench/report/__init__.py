"""bench/RESULTS.md, its pictures and the README's table of results, written from the result files."""

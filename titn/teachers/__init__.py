"""Teachers: architectures, foreign weights, and where a student's run gets its teacher from."""

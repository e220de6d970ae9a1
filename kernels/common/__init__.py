"""What all operations share: the choice of backend, device tiles and tuned configurations."""

"""`python -m bench.kernels`."""

from bench.kernels.times import main

if __name__ == "__main__":
    main()

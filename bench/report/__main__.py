"""`python -m bench.report`."""

from bench.report.page import main

if __name__ == "__main__":
    main()

"""The command line, as ``python -m cospec``."""

from cospec.cli import main

if __name__ == "__main__":
    main()

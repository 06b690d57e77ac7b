"""`python -m kdshrink`."""

from .cli import main

if __name__ == "__main__":
    main()

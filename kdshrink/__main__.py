"""The entry point of `kdshrink` and `python -m kdshrink`."""

from __future__ import annotations

import sys


def main() -> None:
    """Run the command line; Ctrl-C during the imports ends without a traceback too."""
    try:
        from .cli.main import main as run
    except KeyboardInterrupt:
        sys.exit(130)
    run()


if __name__ == "__main__":
    main()

"""Merge an adapter, or take it out: `python src/adapters.py --help`, the same as `bitgen adapters`."""

import sys

from bitgen.commands.adapters import main

if __name__ == "__main__":
    sys.exit(main())

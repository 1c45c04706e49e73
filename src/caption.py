"""Describe images: `python src/caption.py --help`, the same as `bitgen caption`."""

import sys

from bitgen.commands.caption import main

if __name__ == "__main__":
    sys.exit(main())

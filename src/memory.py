"""Teach a trained model pictures: `python src/memory.py --help`, the same as `bitgen memory`."""

import sys

from bitgen.commands.memory import main

if __name__ == "__main__":
    sys.exit(main())

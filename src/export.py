"""Export a checkpoint: `python src/export.py --help`, the same as `bitgen export`."""

import sys

from bitgen.commands.export import main

if __name__ == "__main__":
    sys.exit(main())

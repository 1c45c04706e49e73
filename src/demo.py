"""A page in the browser for a trained model: `python src/demo.py --help`, the same as `bitgen demo`."""

import sys

from bitgen.commands.demo import main

if __name__ == "__main__":
    sys.exit(main())

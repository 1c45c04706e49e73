"""Evaluate a trained model: `python src/evaluate.py --help`, the same as `bitgen evaluate`."""

import sys

from bitgen.commands.evaluate import main

if __name__ == "__main__":
    sys.exit(main())

"""Make a BabyLM submission of an export: `python src/submit.py --help`, the same as `bitgen submit`."""

import sys

from bitgen.commands.submit import main

if __name__ == "__main__":
    sys.exit(main())

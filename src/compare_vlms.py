"""Compare recipes of models of parts: `python src/compare_vlms.py --help`, the same as `bitgen compare-vlms`."""

import sys

from bitgen.commands.compare_vlms import main

if __name__ == "__main__":
    sys.exit(main())

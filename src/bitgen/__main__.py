"""`python -m bitgen`: the `bitgen` command."""

import sys

from bitgen.commands import main

if __name__ == "__main__":
    sys.exit(main())

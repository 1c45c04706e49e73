"""Ask a model about pictures: `python src/ask.py --help`, the same as `bitgen ask`."""

import sys

from bitgen.commands.ask import main

if __name__ == "__main__":
    sys.exit(main())

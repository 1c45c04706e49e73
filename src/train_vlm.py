"""A vision-language model of parts: `python src/train_vlm.py --help` lists every setting."""

import sys

from bitgen.commands.train_vlm import main

if __name__ == "__main__":
    sys.exit(main())

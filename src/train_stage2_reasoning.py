"""Stage 2, reasoning: `python src/train_stage2_reasoning.py --help` lists every setting."""

import sys

from bitgen.commands.train_reasoning import main

if __name__ == "__main__":
    sys.exit(main())

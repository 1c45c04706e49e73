"""Stage 1, vision-language training: `python src/train_stage1_vision_language.py --help` lists every setting."""

import sys

from bitgen.commands.train import main

if __name__ == "__main__":
    sys.exit(main())

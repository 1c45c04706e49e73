"""Stage 1, vision-language training: `python src/train_stage1_vision_language.py --help` lists every setting."""

import os
import sys

# Data workers are forked after the tokenizer was used; it would warn, and switch itself off, in each of them.
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from bitgen.machine.threads import threads_of_this_process

os.environ.update(threads_of_this_process().variables)  # before torch is imported

from bitgen.config import exit_on_config_error, parse_config
from bitgen.machine.ranks import stop_processes
from bitgen.run import train
from bitgen.tasks import TASKS
from bitgen.tasks.chain import split_first_stage


def main() -> int:
    """Read the configuration and train, first the run that it starts from where it names one to be trained."""
    task = TASKS["stage1"]
    with exit_on_config_error():
        first, config = split_first_stage(parse_config())
        try:
            if first is None or train(
                task, first, f"The first of two runs: {config.output.output_dir} starts from its weights"
            ):
                train(task, config)
        finally:
            stop_processes()
    return 0


if __name__ == "__main__":
    sys.exit(main())

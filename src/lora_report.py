"""What adapters cost, and the spectra of weights: `python src/lora_report.py --help`, also `bitgen lora-report`."""

import sys

from bitgen.commands.lora_report import main

if __name__ == "__main__":
    sys.exit(main())

"""What the preparation scripts are made of: flags, reading, counting problems, images, features, downloads, writing.

A script runs as ``python data_prep/NAME.py`` from anywhere, so the package makes ``bitgen`` importable by itself.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "src"))

"""Prints the share of lines that the tests reach, and the files where it is low: python coverage_gaps.py JSON."""

import json
import sys
from pathlib import Path

LOW = 80.0  # percent

report = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
share = {name: entry["summary"]["percent_covered"] for name, entry in report["files"].items()}
low = sorted((percent, name) for name, percent in share.items() if percent < LOW)
print(f"coverage of src/bitgen: {report['totals']['percent_covered']:.1f}% of the lines; below {LOW:.0f}%:")
for percent, name in low:
    print(f"  {percent:5.1f}%  {name}")
if not low:
    print("  no file")

"""From an export and its checkpoints to the files that the challenge takes, a report and learning curves."""

"""Ages of acquisition: when a word is learned, over the checkpoints of a training."""

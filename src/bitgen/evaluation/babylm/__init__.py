"""The BabyLM fast evaluation: the same decisions as the official pipeline's, item by item, in a fraction of its time."""

"""The BabyLM evaluation: the official pipeline's decisions, item by item, in a fraction of its time."""

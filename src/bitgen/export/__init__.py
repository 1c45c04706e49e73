"""From a checkpoint to a folder that any Hugging Face user can load, and to the hub."""

"""The training loop: any objective on any batches, step by step, resumed exactly."""

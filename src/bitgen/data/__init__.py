"""Where batches come from: on-disk records, datasets, tokenizers and a sampler that can resume."""

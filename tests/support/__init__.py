"""What many tests build: tiny models, tokenizers, data and runs, from configuration alone and with no download."""

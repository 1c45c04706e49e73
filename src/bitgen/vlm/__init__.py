"""A model of parts: any vision encoder, a connector, and any causal language model with adapters."""

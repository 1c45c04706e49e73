"""A vision encoder, a connector and a causal language model, put together."""

"""A vision-language model made of parts: any vision encoder, a connector, any causal language model with adapters."""

"""BitGen: a tiny multimodal language model that sees, reads, remembers and writes."""

__version__ = "0.1.0"

"""Episodes for a memory: what is taught and what is asked after it."""

"""How good a checkpoint is: retrieval, matching, memory."""

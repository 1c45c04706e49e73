"""How good a checkpoint is: retrieval, matching, captions, language, BabyLM, questions, and models of parts."""

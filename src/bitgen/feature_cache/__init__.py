"""Features of a frozen tower, computed once and read instead of it."""

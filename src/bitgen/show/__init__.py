"""What a person sees of a run: log lines, tables, curves and pictures."""

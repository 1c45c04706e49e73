"""The machine: devices, ranks, random generators, files and signals."""

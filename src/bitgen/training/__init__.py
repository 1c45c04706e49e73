"""How the objective is minimised: phases, optimizer, data-parallel, checkpoints, logs."""

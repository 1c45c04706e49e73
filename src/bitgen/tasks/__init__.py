"""What a run can be for: each task puts model, data, objective and schedule together."""

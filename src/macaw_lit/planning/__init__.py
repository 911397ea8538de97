"""What a run will take, before it is launched: a step of the model on tensors that have no memory, then arithmetic."""

"""What is done to a net with data: training, pruning, INT8."""

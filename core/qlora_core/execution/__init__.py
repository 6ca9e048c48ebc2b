"""What an execution may be: shared by the trainer and the planner, and free of torch."""

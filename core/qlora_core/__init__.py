"""The trainer: everything that runs from a plan.json alone."""

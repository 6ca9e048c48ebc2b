"""What this machine can train, and what stands in the way: each finding with the command that mends it."""

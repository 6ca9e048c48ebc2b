"""A training run: its loop, its step, and what runs now."""

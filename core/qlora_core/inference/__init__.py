"""Loading what was trained, and answering with it."""

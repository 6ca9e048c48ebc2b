"""One small function for each setting that follows from the machine, the model or the data."""

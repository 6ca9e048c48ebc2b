"""The fastest execution that fits."""

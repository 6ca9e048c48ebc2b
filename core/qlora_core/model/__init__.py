"""The model itself: loading it, quantised or not, and the adapters' first values."""

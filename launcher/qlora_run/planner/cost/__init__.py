"""The models of memory and time, from shapes and constants."""

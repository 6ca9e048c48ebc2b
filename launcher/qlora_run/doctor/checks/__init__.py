"""The checks, by what they look at. Each is a function of a ``CheckContext`` that reads and decides alone."""

"""The checks, by what they look at. Each is a function of a ``Subject`` that reads and decides; none asks the world."""

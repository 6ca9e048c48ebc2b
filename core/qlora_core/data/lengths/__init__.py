"""How many tokens rows have, counted or bounded."""

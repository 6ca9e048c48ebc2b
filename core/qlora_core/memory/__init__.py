"""Where activations and weights lie, what is made again, and what happens when memory runs out."""

"""What makes the demo's base and rows, which the core ships: ``python -m make_demo.make_data``, in ``dev/``."""

"""What a person sees: plans, live progress, closing summaries, errors. Nothing here decides anything."""

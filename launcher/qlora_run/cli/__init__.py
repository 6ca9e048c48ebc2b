"""What a person gives, from the words they wrote: command line, config files, foreign names, help."""

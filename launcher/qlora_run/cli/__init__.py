"""What a person wishes, from the words they wrote: command line, config files, foreign names, help."""

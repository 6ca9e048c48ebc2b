"""What a process needs before and beside its work: environment, events, control, streams, child processes."""

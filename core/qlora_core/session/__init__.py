"""What a process needs before and beside the work: which of the processes it is."""

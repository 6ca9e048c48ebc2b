"""Running the core in a child process: watching it, answering it, starting it again."""

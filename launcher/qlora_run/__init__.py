"""The command: probe, resolve, supervise, show. Never imports torch."""

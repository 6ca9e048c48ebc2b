"""The entry points of child processes: ``python -m qlora_core.jobs.NAME JOB``."""

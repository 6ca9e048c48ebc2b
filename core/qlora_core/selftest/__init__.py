"""Does this environment really compute? ``python -m qlora_core.selftest [NAME ...]``.

That a library imports proves nothing: each test runs the operation that training stands on and compares the
result with one that was computed otherwise. Meant for a child process: a crash or a hang is then a verdict too.
"""

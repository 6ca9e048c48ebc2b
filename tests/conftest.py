"""Settings of all tests."""

from contextlib import suppress

with suppress(ImportError):  # tests on a card do without
    from hypothesis import settings

    settings.register_profile("patient", deadline=None)  # how long a case takes says nothing on a busy machine
    settings.load_profile("patient")

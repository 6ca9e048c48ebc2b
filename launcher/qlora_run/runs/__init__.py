"""Folders of runs: finding, claiming and replaying them."""

"""The contract: what a setting is, what a machine is, what a plan is; and the catalogue."""

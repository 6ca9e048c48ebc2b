"""What a run leaves behind: adapters, merged models, and the records to use them again."""

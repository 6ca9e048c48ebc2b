"""What earlier runs measured on this machine: its context, how well memory was predicted, and its speed."""

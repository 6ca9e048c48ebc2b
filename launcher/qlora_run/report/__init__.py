"""What a run said, folded into values and words; free of any display."""

"""The embedded demo: a tiny cafe chat model, and the rows that teach it to write kitchen tickets."""

"""DeepSpeed's configuration as this engine runs it: which of its keys have the same meaning,
which have no effect, and which cannot be honoured."""

"""What nodes call: whole tasks, from their inputs to their outputs."""

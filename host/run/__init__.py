"""One sampling run: its rows, its patches, its guider and its samplers."""

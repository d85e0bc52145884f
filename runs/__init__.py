"""One run: its command line, its folder, its record, its tracking."""

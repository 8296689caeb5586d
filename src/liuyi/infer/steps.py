"""Where this art meets the spine: its steps."""

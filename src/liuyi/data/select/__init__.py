"""Selection: thresholds on attributes decide what is kept, whole clusters are held out, and nothing is forgotten."""

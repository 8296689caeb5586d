"""Where documents come from. A source reads; it judges nothing."""

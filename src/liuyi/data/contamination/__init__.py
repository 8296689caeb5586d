"""Contamination: which documents share words with the items of eval sets."""

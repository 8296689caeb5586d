"""Duplicates: exact by fingerprint, near by MinHash and verified Jaccard, grouped over the whole corpus."""

"""Synthetic data: a model is asked, its answers are kept, checked and counted, and each row tells its origin."""

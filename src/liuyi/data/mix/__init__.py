"""Mixing: one stream of tokens from several sources, by weights, phases, a budget and bounds on repetition."""

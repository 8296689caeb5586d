"""Quality that is learned: a classifier trained on a person's examples, and the perplexity of a model."""

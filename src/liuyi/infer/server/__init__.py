"""The OpenAI API over any `ChatBackend`."""

"""The art of data: sources, cleaning, deduplication, selection, chats, tokens."""

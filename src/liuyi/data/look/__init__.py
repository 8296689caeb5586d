"""Looking at data: one document with its verdict, a page about a corpus, and the way from tokens back to documents."""

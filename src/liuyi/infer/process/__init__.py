"""An engine in a process of its own: neither can a slow client stall decoding, nor a crash take the server along."""

"""Which data is better? Small proxies trained alike on each, evaluated on the same text, and what that proves."""

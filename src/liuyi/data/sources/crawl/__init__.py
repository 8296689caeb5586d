"""A polite crawler. The files in the order in which a page passes through them:

urls        one way to write each address; what looks like a trap
frontier    which addresses are known, waiting, done: SQLite, so that a kill loses nothing
robots      what a host allows, and how often
address     which machines may be connected to at all
fetch       one request, bounded in time and bytes
pages       links, canonical address and wishes of a page; sitemaps
archive     WARC files that only grow: the evidence, and what a resumed crawl trusts
crawler     the loop that ties them together
"""

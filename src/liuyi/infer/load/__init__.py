"""A client that puts a server with the OpenAI API under load and says how it bore it.

`workload` and `trace` make the requests; `connect` gives connections, `client` sends a request and notes when each
piece of its `answer` came, `drive` sends them all at given times or in so many lanes, and `strain` watches whether the
client keeps up; `outcome` holds what became of one and `summary` of all of them, `page` draws it. The formulas are
those of docs/benchmarking.md.
"""

"""The facility desk: a sentence in English or Chinese becomes an intent with slots, as compact JSON.

The sentences are grown from the templates of the PyPI package `home-assistant-intents` (sentence templates by
The Home Assistant Authors, CC BY 4.0) and a description of the facility. In reading order: `facility` (what is
there and what it is called), `templates` (what people say), `expand` (from a template to sentences), `recognise`
(from a sentence back to its answer), `answers` (the JSON and its schema), `split` (which templates are held out),
`style` and `typos` (how people write), `compound` (several requests at once), `build` (all of it together).
"""

"""Tool calls: what a model writes when it calls a function, read as it comes, and grammars that make it write so.

One file a format (`hermes`, `llama`, `mistral`, `plain`); `formats.format_of` tells which one a chat template speaks.
"""

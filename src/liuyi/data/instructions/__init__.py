"""Conversations and preferences from files: formats detected, rows validated, converted, and the wrong ones named."""

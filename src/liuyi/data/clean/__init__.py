"""Cleaning: filters measure documents and write attributes beside them; `liuyi.data.select` decides later."""

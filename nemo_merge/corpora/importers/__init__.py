"""Readers of corpus formats, one per file: each yields sessions and reports what it cannot read."""

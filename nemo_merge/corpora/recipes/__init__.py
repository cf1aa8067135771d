"""Recipes, one corpus per file: ``download_x`` and ``prepare_x`` in Lhotse's form, and what the registry says."""

"""The staged recipes: numbered steps from data to a table of results, behind every ``run.sh``."""

"""Tables, pictures and pages about merges and their results."""

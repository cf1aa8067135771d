"""The language recipe: experts of languages are merged, and a language is added by merging one more expert."""

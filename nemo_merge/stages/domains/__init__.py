"""A study of many domains: one expert each, joint fine-tuning beside them, every method with a search, retention.

The protocol is that of Carvalho et al. (2026, arXiv 2603.05354): experts of ten domains of European Portuguese are
merged and compared with fine-tuning on all their data together, in domain, out of domain, and on what the base knew.
"""

"""Everything that breaks the cluster on purpose, what clients do meanwhile, and the judges."""

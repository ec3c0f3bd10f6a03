"""A whole region in one process: virtual time, one seed, faults, clients, and judges of what they saw."""

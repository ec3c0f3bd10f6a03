"""The log between regions: its port, who writes it, and its implementations."""

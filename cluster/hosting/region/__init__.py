"""A node among others: joining them, keeping replicas and leaders in place, what operators ask."""

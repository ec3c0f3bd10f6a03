"""A replica's life: which there are, how they get a whole image, what is damaged, and how they go."""

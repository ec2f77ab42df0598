"""What a recommender rests on: the order of histories, their length, items and users that it has seen, its domain."""

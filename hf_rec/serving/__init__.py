"""A recommender behind HTTP: needs `pip install hf_rec[serve]`."""

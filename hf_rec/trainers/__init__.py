"""Trainers: each method a `*_config.py` and a `*_trainer.py` over one thin base on `transformers.Trainer`."""

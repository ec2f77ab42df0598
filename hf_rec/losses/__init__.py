"""Losses as pure functions: tensors in, tensor out. Nothing here sees a model, a file or a trainer."""

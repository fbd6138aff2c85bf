"""Layers and models: wrap a linear layer, adapt a model, merge, save and load."""

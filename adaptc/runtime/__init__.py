"""Running plans on torch tensors: the oracle, compiled programs, initial values."""

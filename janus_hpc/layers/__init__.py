"""The layers models are made of, on torch tensors. Know nothing of ranks or files."""

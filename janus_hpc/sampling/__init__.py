"""From logits to tokens, from tokens to text, and when to stop. Knows nothing of models or MPI."""

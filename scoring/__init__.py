"""How good is it? Scores of arrays and tensors, whoever made them."""

"""What a model can do: features, accuracy, retrieval, and the metrics made of them."""

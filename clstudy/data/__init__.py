"""Images, labels, texts, and the order in which they come."""

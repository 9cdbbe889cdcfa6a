"""Terms that methods share."""

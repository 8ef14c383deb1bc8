"""What a person reads: one JSON, one static page and one card, all from the same data."""

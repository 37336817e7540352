"""What a reader gets: the page with its figures, tables, and the card of a model."""

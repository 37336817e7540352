"""A first quarter of an hour on a GPU: six parts that need nothing but the machine, each written down as it comes."""

"""Data sets: annotation files of many formats as one kind of record, preparation, and what training draws from them."""

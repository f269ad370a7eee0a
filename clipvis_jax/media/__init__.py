"""Videos and pictures: reading, writing, drawing on them."""

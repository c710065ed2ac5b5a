"""What views are made of, and the lines above and below them."""

"""A procedural street: what is in it (items), how it looks (things, people, vehicles, ground, light) and how it is drawn (raster)."""

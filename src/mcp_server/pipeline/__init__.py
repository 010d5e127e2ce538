"""The steps of the road, one module each: a typed value in, a typed value out."""

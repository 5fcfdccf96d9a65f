"""Makes a trained network smaller or faster, measures what that costs, and certifies it; see README.md."""

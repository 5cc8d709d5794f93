"""A judge asked about many games, within limits."""

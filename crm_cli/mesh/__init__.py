"""Geometry: from a raw surface to a clean, unwrapped, textured mesh."""

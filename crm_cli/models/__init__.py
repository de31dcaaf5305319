"""Tensors: from a photo to a signed distance and colour field."""

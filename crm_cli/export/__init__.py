"""Bytes on disk: GLB, OBJ, USD, previews and the contact sheet."""

"""crm: a folder of product photos in, textured 3D assets out (CRM, arXiv 2403.05034)."""

__version__ = "0.1.0"

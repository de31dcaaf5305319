"""The whole numbers in which every rasteriser measures pixels and orders what it hits."""

SUBPIXEL_BITS = 12
SUBPIXELS = 1 << SUBPIXEL_BITS
CENTRE = SUBPIXELS // 2

EMPTY = 1 - (1 << 63)
"""Key of a pixel that nothing hit."""

LAST_FACE = (1 << 31) - 1

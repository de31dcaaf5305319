"""The texture as a file: which picture format goes into which asset format, and its bytes."""

from __future__ import annotations

import io
import struct
import subprocess
import tempfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from crm_cli.errors import EnvironmentProblem
from crm_cli.export.extras import KTX2_TOOLS, find_ktx2_tool, no_ktx2_tool

TextureFormat = Literal["png", "jpeg", "webp", "ktx2"]

_PNG_LEVEL = 2  # a fifth of the time of Pillow's default for a fifth more bytes
_UP = 2  # the filter that subtracts the pixel above (PNG §9.2)
_KTX2_LEVELS = 255  # the highest quality level of ETC1S


@dataclass(frozen=True, slots=True, kw_only=True)
class Picture:
    """An encoded texture; row 0 is the top (v = 1), sRGB."""

    data: bytes
    kind: TextureFormat

    @property
    def suffix(self) -> str:
        """Of its file name."""
        return {"png": ".png", "jpeg": ".jpg", "webp": ".webp", "ktx2": ".ktx2"}[self.kind]


def encode_texture(pixels: NDArray[np.uint8], kind: TextureFormat, *, quality: int) -> Picture:
    """Encode a picture [T T 3] the quick way: compression is the dearest part of writing an asset.

    quality: 1 … 100, of the formats that lose detail.
    """
    from PIL import Image

    image, stream = Image.fromarray(pixels), io.BytesIO()
    if kind == "png":
        stream.write(_encode_png(pixels))
    elif kind == "jpeg":
        # Whole chroma: charts of unlike colours lie a few texels apart, and half of it would bleed across.
        image.save(stream, "JPEG", quality=quality, subsampling=0)
    elif kind == "webp":
        image.save(stream, "WEBP", quality=quality, method=4)
    else:
        stream.write(_encode_ktx2(pixels, quality=quality))
    return Picture(data=stream.getvalue(), kind=kind)


def _encode_png(pixels: NDArray[np.uint8]) -> bytes:
    """Encode a picture [H W 3] with one filter for all rows.

    Pillow tries five a row, which takes twice as long for about as many bytes. (PNG §5, §9.2, §11.2)
    """
    height, width = pixels.shape[:2]
    rows = np.zeros((height, 1 + 3 * width), np.uint8)
    rows[:, 0] = _UP
    rows[:, 1:] = pixels.reshape(height, -1)
    rows[1:, 1:] -= pixels[:-1].reshape(height - 1, 3 * width)  # modulo 256, as it is undone
    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)  # eight bits a channel, RGB, not interlaced
    chunks = ((b"IHDR", head), (b"IDAT", zlib.compress(rows.tobytes(), _PNG_LEVEL)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        for name, data in chunks
    )


def _encode_ktx2(pixels: NDArray[np.uint8], *, quality: int) -> bytes:
    """Have a program on PATH encode a picture."""
    tool = find_ktx2_tool()
    if tool is None:
        raise no_ktx2_tool()
    with tempfile.TemporaryDirectory(prefix="crm-ktx2-") as folder:
        png, ktx2 = Path(folder) / "texture.png", Path(folder) / "texture.ktx2"
        png.write_bytes(encode_texture(pixels, "png", quality=100).data)
        level = max(1, round(quality * _KTX2_LEVELS / 100))
        words = [word.format(level=level, png=png, ktx2=ktx2) for word in KTX2_TOOLS[tool]]
        done = subprocess.run(
            [tool, *words], cwd=folder, stdin=subprocess.DEVNULL, capture_output=True, check=False
        )
        if done.returncode or not ktx2.is_file():
            told = (done.stderr or done.stdout).decode("utf-8", "replace").strip()
            raise EnvironmentProblem(
                f"{tool} could not write the texture as KTX2 (exit code {done.returncode}): {told[-200:]!r}",
                code="E_KTX2",
                remedy="another version of it, or --set export.texture=webp",
            )
        return ktx2.read_bytes()

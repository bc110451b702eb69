"""Bytes of one photo -> upright BGR array, with every limit checked before anything is decoded."""

from app.imaging.decoder import PhotoDecoder, decode_at_least, decode_image
from app.imaging.formats import FORMATS, Header, read_header, sniff_format
from app.imaging.limits import ImageLimits, estimate_memory
from app.imaging.png import check_crop, decode_crop, encode_crop

__all__ = [
    "FORMATS",
    "Header",
    "ImageLimits",
    "PhotoDecoder",
    "check_crop",
    "decode_at_least",
    "decode_crop",
    "decode_image",
    "encode_crop",
    "estimate_memory",
    "read_header",
    "sniff_format",
]

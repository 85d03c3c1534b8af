"""The scorers that ship with the project, one file each."""

SHIPPED: dict[str, str] = {
    "clip": "reward_service.scorers.clip:ClipScorer",
    "jpeg_compressibility": "reward_service.scorers.jpeg:JpegCompressibility",
    "jpeg_incompressibility": "reward_service.scorers.jpeg:JpegIncompressibility",
    "ocr": "reward_service.scorers.ocr:OcrAccuracy",
}
"""Short name in the configuration -> module:class."""

"""From an image to faces: detection, alignment, embedding and quality."""

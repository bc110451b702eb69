"""Error rates of a model pack on labelled photos: verification pairs and face boxes."""

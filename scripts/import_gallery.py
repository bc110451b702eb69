"""Import a folder of people into the gallery: the same as `likeness import`."""

import sys

from app.cli import main

if __name__ == "__main__":
    sys.argv.insert(1, "import")
    main()

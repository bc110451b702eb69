"""Model packs from elsewhere: fetches published networks, converts them, and writes a folder that
`serve` can run."""

"""Model packs from elsewhere: published networks fetched, converted and put into a folder that
`serve` runs."""

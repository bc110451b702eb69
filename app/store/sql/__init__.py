"""The store's SQL: tables, rows, transactions, and one file for each entity."""

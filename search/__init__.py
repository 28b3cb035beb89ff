"""What to try and what to keep: the search, its ledger, the choice, the report, the command line."""

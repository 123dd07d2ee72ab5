"""Everything that calls a server over HTTP: the client, its retries, and the ledger of what was paid."""

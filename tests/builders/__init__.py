"""What the tests share: small worlds, rows, settings and stand-ins, one module per part of the core."""

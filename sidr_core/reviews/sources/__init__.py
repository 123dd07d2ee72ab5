"""One module per layout of source files; each turns its files into typed records and refused lines."""

"""After the table: what goes live, the server and the page that show it, export to other engines."""

"""After the table: what goes live, and the server and the page that show it."""

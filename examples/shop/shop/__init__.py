"""A shop that mails each customer what SIDR recommends."""

"""What the pages show, read from the database into frozen values; no HTML and no charts here."""

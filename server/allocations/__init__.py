"""One config per matrix under a byte budget, solved in the server from rows of the database."""

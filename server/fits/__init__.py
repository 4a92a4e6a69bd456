"""Models of the error, fitted in the server to rows of the database."""

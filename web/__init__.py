"""The page: server-rendered HTML over the database, live through the event stream. No torch, no third-party script."""

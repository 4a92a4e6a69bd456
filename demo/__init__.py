"""The demo: a small real language model of our own, and the text it is trained and judged on."""

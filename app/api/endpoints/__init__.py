"""The calls, one file a family: what they take, what they answer, with examples, and the routes."""

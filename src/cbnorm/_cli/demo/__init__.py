"""`cbnorm demo`: the experiment on its network, and what is shown of it (`report`, `picture`)."""

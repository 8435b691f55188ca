"""What people need beside the page: a client, a server, the set-up, the demo."""

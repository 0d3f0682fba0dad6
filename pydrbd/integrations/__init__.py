"""What other tools read: status as text and as JSON. Floor: outer."""

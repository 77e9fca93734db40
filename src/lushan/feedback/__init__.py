"""What people say of answers: stored so that none is lost, read as a stream, exported as training rows. Start with store.py."""

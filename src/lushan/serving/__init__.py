"""The server: what clients send, one thread that computes, and answers as OpenAI's clients expect them. Start with app.py."""

"""The store on disk: SQL schema, sessions and migrations; what is in it is known higher up. Start with connect.py."""

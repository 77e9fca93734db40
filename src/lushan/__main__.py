"""`python -m lushan` is the same as `lushan`."""

from lushan.cli.main import main

if __name__ == "__main__":
    main()

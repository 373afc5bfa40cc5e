"""Where people are: this package's steps as parts of other libraries, one module each."""

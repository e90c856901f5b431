"""What is asked of the systems; each file is one kind of work and yields samples."""

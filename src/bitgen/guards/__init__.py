"""What comes from outside (data, files, servers, flags) is checked here, each kind at one door."""
